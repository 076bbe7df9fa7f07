"""The study of recognising agents by their caches: `unspoken identity evaluate`."""
