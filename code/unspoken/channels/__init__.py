"""Ways of handing over: each turns what one agent has read into what another starts from."""

from __future__ import annotations

from unspoken.registry import Registry

CHANNELS = Registry(
    "channel",
    "unspoken.channels",
    {
        "none": "unspoken.channels.text:Nothing",
        "full-text": "unspoken.channels.text:FullText",
        "text": "unspoken.channels.text:Text",
        "text-asked": "unspoken.channels.text:TextAsked",
        "kv": "unspoken.channels.kv:Insert",
        "kv-continue": "unspoken.channels.kv:Continue",
        "compose": "unspoken.channels.compose:Compose",
        "need": "unspoken.channels.need:Need",
        "layers": "unspoken.channels.layers:Layers",
        "latent": "unspoken.channels.latent:Latent",
        "embedding": "unspoken.channels.embedding:Embedding",
        "activation": "unspoken.channels.activation:Activation",
        "fused": "unspoken.channels.fused:Fused",
        "finetune": "unspoken.channels.finetune:FineTune",
    },
)
