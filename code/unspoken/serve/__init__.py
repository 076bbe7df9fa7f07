"""An HTTP server that speaks OpenAI's chat protocol and hands caches over. Needs the extra `serve`."""
