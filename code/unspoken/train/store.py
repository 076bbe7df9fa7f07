"""The sender's columns of every lesson, computed once and kept, so that training never waits for the sender."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unspoken.channels.fused import sent_rows
from unspoken.engines.protocol import Engine
from unspoken.errors import StorageError, UsageError
from unspoken.fusers.pair import Pair
from unspoken.session import Agent
from unspoken.spec import fingerprint
from unspoken.train.lesson import Lesson

SHARD = 25
AGENTS = ("lyra", "vera", "cc")
"""Who reads and who answers, in turn: a fuser must not depend on one agent's system prompt."""

Watcher = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


class Store:
    """Columns of lessons on disk, aligned to the receiver's tokens, read as they are needed.

    Args:
        folder: Where they are kept, in a folder of their own; trainings with the same lessons and models share them.
        lessons: The lessons.
        pair: The two models.
        engine: Registered name of the sender's; two engines need not agree to the last bit.
    """

    def __init__(self, folder: Path, lessons: Sequence[Lesson], pair: Pair, engine: str) -> None:
        self._lessons = lessons
        told = "\0".join((engine, pair.sender.weights, pair.receiver.tokenizer, *(each.text for each in lessons)))
        self._of = fingerprint(told)
        self._folder = folder / self._of[:12]

    def fill(self, sender: Engine, receiver: Engine, watch: Watcher) -> None:
        """Compute what is missing; what a killed run has finished is kept.

        Raises:
            UsageError: If columns hold numbers too large to be kept.
            StorageError: If they cannot be written.
        """
        readers = [Agent(name, sender) for name in AGENTS]
        with _writable(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(self._lessons), SHARD):
            watch("sender's columns", start, len(self._lessons))
            if self._sound(self._path(start)):
                continue
            numbers = range(start, min(start + SHARD, len(self._lessons)))
            tensors = {
                str(number): _kept(sent_rows(readers[number % len(readers)].read(self._lessons[number].text), receiver))
                for number in numbers
            }
            aside = self._path(start).with_suffix(".part")
            with _writable(self._folder):
                save_file(tensors, aside, metadata={"of": self._of})
                aside.replace(self._path(start))
        watch("sender's columns", len(self._lessons), len(self._lessons))

    def rows(self, number: int) -> Float[Tensor, "columns sender"]:
        """Return a lesson's columns, position-free.

        Raises:
            StorageError: If they cannot be read.
        """
        path = self._path(number - number % SHARD)
        try:
            with safe_open(path, framework="pt") as file:
                found: Tensor = file.get_tensor(str(number))
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Columns of lesson {number} cannot be read from {path}: {error}.", "Start the training again."
            ) from error
        return found.to(torch.float32)

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:06d}.safetensors"

    def _sound(self, path: Path) -> bool:
        """Return whether a shard is there and of these very lessons and models."""
        try:
            with safe_open(path, framework="pt") as file:
                return bool((file.metadata() or {}).get("of") == self._of)
        except (OSError, SafetensorError):
            return False


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError(f"Columns cannot be written to {folder}: {error}.", "Free some space.") from error


def _kept(rows: Float[Tensor, "columns sender"]) -> Float[Tensor, "columns sender"]:
    small = rows.to(torch.float16)
    if not bool(torch.isfinite(small).all()):
        raise UsageError(
            f"The sender's columns hold numbers up to {float(rows.abs().max()):.3g}, more than float16 has.",
            "This sender cannot be trained on yet.",
        )
    return small.contiguous()
