"""Several models on one device, one at a time: a model is loaded when it is used, and the one before it unloaded.

Caches are values in main memory and outlive the engine that made them, so a hand-over needs one model at a time:
the highest use of memory is the larger model and one cache, never the sum of both models.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines.capabilities import located
from unspoken.engines.protocol import Engine, Frame, Generation, Hearer, Limits, Prompt, Turn
from unspoken.spec import ModelSpec


class Slot:
    """Room for one loaded model."""

    def __init__(self) -> None:
        self._owner: Parked | None = None
        self._engine: Engine | None = None

    def engine(self, owner: Parked, load: Callable[[], Engine]) -> Engine:
        """Return a parked engine's model, loaded; the model of another one is unloaded before."""
        if self._owner is not owner or self._engine is None:
            self.free()
            self._owner, self._engine = owner, load()
        return self._engine

    def leave(self, owner: Parked) -> None:
        """Unload a parked engine's model, if it is the one that is loaded."""
        if self._owner is owner:
            self.free()

    def free(self) -> None:
        """Unload whatever is loaded."""
        if self._engine is not None:
            self._engine.close()
        self._owner = self._engine = None
        gc.collect()  # Modules refer to each other; their weights are only free once they are collected.


class Parked:
    """An engine whose model is loaded while it is used and not while another one of its slot is.

    Args:
        load: Loads the model; called again after another one took its place.
        slot: Where it is loaded; share one slot between the engines of one device.
    """

    def __init__(self, load: Callable[[], Engine], slot: Slot) -> None:
        self._load, self._slot = load, slot
        first = self._awake()
        # What a hand-over asks of the other side must not wake it.
        self.name, self.version, self.dtype, self.precision = first.name, first.version, first.dtype, first.precision
        self._spec = first.spec
        self._frames: dict[str, Frame] = {}

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as a cache depends on it."""
        return self._spec

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text, with no special tokens added."""
        return self._awake().encode(text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return self._awake().decode(token_ids)

    def located(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return for each token of `encode(text)` the characters [start, stop) of the text that it covers.

        Raises:
            UsageError: If the engine that is parked here cannot tell.
        """
        return located(self._awake(), self._spec.name).located(text)

    def frame(self, system: str) -> Frame:
        """Return the model's chat template around a user's words, for a system prompt."""
        if system not in self._frames:
            self._frames[system] = self._awake().frame(system)
        return self._frames[system]

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Read a prompt and return the cache of `past` and prompt together."""
        return self._awake().prefill(prompt, past, start=start)

    def logits(
        self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None
    ) -> Float[Tensor, "seq vocab"]:
        """Return the float32 logits at every token of a prompt read on top of `past`."""
        return self._awake().logits(prompt, past, start=start)

    def generate(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None = None) -> tuple[Generation, ...]:
        """Answer several turns in one batch; each sees only its own past and prompt."""
        return self._awake().generate(turns, limits, hear)

    def close(self) -> None:
        """Unload the model if it is loaded; it is loaded again when it is used."""
        self._slot.leave(self)

    def _awake(self) -> Engine:
        return self._slot.engine(self, self._load)
