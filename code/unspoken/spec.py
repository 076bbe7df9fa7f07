"""What a cache depends on: the model, described so that two descriptions can be compared."""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import msgspec

Pairing = Literal["half", "interleaved"]


class RopeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model turns its keys by position.

    The frequencies themselves are kept, not the formula they came from, so every RoPE whose
    frequencies do not change with length (plain, linear, Llama 3.1, YaRN) is described alike.

    Attributes:
        kind: The name of the scaling rule, for display.
        pairing: Which coordinates form a pair: `half` (i, i + d/2) or `interleaved` (2i, 2i + 1).
        inverse_frequencies: Radians per position of each pair, `[head_dim / 2]`, float32 values.
        attention_scaling: Factor the model multiplies into cos and sin (YaRN); cached keys hold it.
    """

    kind: str
    pairing: Pairing
    inverse_frequencies: tuple[float, ...]
    attention_scaling: float = 1.0

    def equals(self, other: RopeSpec) -> bool:
        """Tell whether two descriptions turn keys alike, up to how libraries round a frequency in float32.

        Four units in the last place are 5e-7 of an angle: 0.004 radians at position 8,192.
        """
        same = (self.pairing, len(self.inverse_frequencies)) == (other.pairing, len(other.inverse_frequencies))
        mine = (*self.inverse_frequencies, self.attention_scaling)
        theirs = (*other.inverse_frequencies, other.attention_scaling)
        return same and all(math.isclose(a, b, rel_tol=5e-7) for a, b in zip(mine, theirs, strict=True))


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything about a model that its cache depends on.

    Attributes:
        name: For display only; never compared.
        family: The architecture's name ("llama", "qwen3").
        layers: Decoder layers that keep keys and values.
        kv_heads: Key-value heads of each layer.
        head_dim: Coordinates of one head.
        vocabulary: Number of token ids.
        context: Positions the model was made for.
        rope: Its rotary embedding.
        weights: Fingerprint of sampled weights; the same for any folder or dtype label.
        architecture: Fingerprint of the configuration fields that change a cache.
        tokenizer: Fingerprint of the vocabulary and its behaviour.
        chat_template: Fingerprint of the chat template.
    """

    name: str
    family: str
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    rope: RopeSpec
    weights: str
    architecture: str
    tokenizer: str
    chat_template: str

    def elements_per_column(self) -> int:
        """Return how many numbers one token's keys and values are, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def fingerprint(data: bytes | str) -> str:
    """Return the first 32 hex digits of the SHA-256 of some data."""
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()[:32]
