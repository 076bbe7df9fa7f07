"""Bring your own transformers model and tokenizer: here a tiny random one, built in code, nothing downloaded.

    python examples/own_model.py

Its answers are noise, as its weights are. What it shows is that the gate measures any model before a cache of it
may travel, and that going on from a cache gives what reading everything gives.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unspoken import Agent, from_transformers
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Request
from unspoken.engines.gate import measure
from unspoken.engines.protocol import Limits

REPORT, QUESTION = "The old mill is run by Anna.", "Who runs the old mill?"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes; having no chat template, it gets a plain one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def main() -> None:
    """Wrap the model, show what the gate measured, and hand a reading over in two ways."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = LlamaConfig(vocab_size=256, max_position_embeddings=1024, initializer_range=0.1, **sizes, **heads)
    engine = from_transformers(LlamaForCausalLM(config), tokenizer(), "my-tiny-llama")
    for check, largest in measure(engine).checks.items():
        print(f"gate: {check:<9} logits differ by at most {largest:.1e}")
    lyra = vera = Agent("lyra", engine)  # the same card on both ends: then both channels are exact or nearly so
    request = Request((lyra.read(REPORT),), QUESTION)
    for name in ("full-text", "kv-continue", "kv+float32"):
        (delivery,) = build_channel(name).send([request], vera)
        (reply,) = vera.answer([QUESTION], [delivery], Limits(8))
        print(f"{name:<12} {delivery.bytes_moved:>7,} bytes, first token {reply.generation.token_ids[0]}")


if __name__ == "__main__":
    main()
