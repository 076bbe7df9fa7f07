"""How a fuser is trained, as written in YAML."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from unspoken.errors import UsageError
from unspoken.lab.yamlfile import read_yaml

Count = Annotated[int, msgspec.Meta(ge=0)]


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="facts"):
    """Generated facts (`unspoken.train.facts`).

    Attributes:
        lessons: Texts, each with its own draw.
        facts: Facts of one text; even, and no more than there are things to tell of.
    """

    lessons: Count
    facts: Annotated[int, msgspec.Meta(ge=2, le=38, multiple_of=2)] = 6


class Lists(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lists"):
    """Lists of words of the receiver's vocabulary, asked for what comes after one (`unspoken.train.lists`).

    Attributes:
        lessons: Lists.
        words: Words of one.
    """

    lessons: Count
    words: Annotated[int, msgspec.Meta(ge=2)] = 20


class Choices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="choices"):
    """Reports on three things, of which the receiver has to choose one (`unspoken.train.choices`).

    Attributes:
        lessons: Reports.
    """

    lessons: Count


class Places(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="places"):
    """People at places, asked for the country, which the text does not say (`unspoken.train.places`).

    Attributes:
        lessons: Texts.
    """

    lessons: Count


class Texts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="texts"):
    """Texts from a file, asked for gaps and sentences (`unspoken.train.texts`).

    Attributes:
        path: A text file, or JSON lines with a field `text`; of an imported memory, the held-out part is not used.
        lessons: How many passages; all if None.
        letters: Longest passage.
    """

    path: str
    lessons: Count | None = None
    letters: Annotated[int, msgspec.Meta(ge=1)] = 700


Material = Facts | Lists | Choices | Places | Texts


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a fuser is trained.

    Attributes:
        name: Of the run's folder, and of the fuser below `models/`.
        sender: The model whose columns go in: name, folder, or GGUF file.
        receiver: The model whose columns come out; runs on the transformers engine.
        sender_noise: Makes the sender a copy of itself with noise of this share of each weight matrix's deviation.
        sender_engine: Registered engine of the sender.
        kind: `ridge` (closed form), `bottleneck` (a network on a regression), or `c2c`.
        rank: Of the bottleneck's linear map.
        width: Of its network, or of a C2C fuser's.
        blocks: Of the network.
        sources: Sender layers each head's ridge sees.
        window: Sender layers it may choose them from.
        ridge: Penalty.
        calibration: Lessons the regression is fitted to, at most.
        material: What is read and asked.
        steps: Of the optimiser; 0 leaves the regression as it is.
        questions: Asked of a lesson at one step, at most.
        accumulate: Lessons of one step.
        rate: Learning rate at its highest.
        warmup: Steps until it is reached; it falls along a cosine to a twentieth from there.
        decay: AdamW's weight decay.
        clip: Largest norm of a gradient.
        attention: Weight of the attention-output loss; 0 for none.
        guard: Share of steps at which another lesson's columns are given, and the receiver shall answer as if it had
            got none.
        checkpoint: Steps between two checkpoints.
        seed: Of everything drawn.

    """

    name: str
    sender: str
    receiver: str
    material: tuple[Material, ...]
    sender_noise: float = 0.0
    sender_engine: str = "transformers"
    kind: Literal["ridge", "bottleneck", "c2c"] = "bottleneck"
    rank: int = 256
    width: int = 512
    blocks: int = 1
    sources: int = 2
    window: int = 4
    ridge: float = 0.03
    calibration: int = 400
    steps: int = 2000
    questions: int = 6
    accumulate: int = 1
    rate: float = 4e-4
    warmup: int = 50
    decay: float = 0.01
    clip: float = 1.0
    attention: float = 0.0
    guard: float = 0.0
    checkpoint: int = 100
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] = 20261128

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.name):
            raise UsageError(
                f"The fuser's name '{self.name}' cannot be a folder's.", "Use small letters, digits, hyphens."
            )
        if not self.material:
            raise UsageError("The training names no material.", "Add facts, lists or texts, see experiments/fusers/.")
        self._require_numbers()
        if unfit := self._unfit():
            raise UsageError(f"The training of a {self.kind} fuser cannot be: {unfit[0]}.", f"Write {unfit[1]}.")

    def _require_numbers(self) -> None:
        least = {"calibration": 1, "steps": 0, "questions": 1, "accumulate": 1, "warmup": 0, "checkpoint": 1}
        least |= {"rank": 1, "width": 0, "blocks": 0, "sender_noise": 0, "decay": 0, "attention": 0}
        least |= {"sources": 1, "window": self.sources}
        for field, bound in least.items():
            if not bound <= getattr(self, field) < math.inf:
                raise UsageError(
                    f"The training's {field} is {getattr(self, field)}, expected {bound} or more.", "Change it."
                )
        if not 0 <= self.guard < 1 or not all(0 < each < math.inf for each in (self.rate, self.clip, self.ridge)):
            raise UsageError(
                f"The training's guard is {self.guard}, its rate {self.rate}, clip {self.clip} and ridge {self.ridge}.",
                "Give a share below 1 for the guard, and the others above 0.",
            )

    def _unfit(self) -> tuple[str, str] | None:
        """Return what a fuser of this kind cannot be trained with, and what to write instead."""
        if self.kind == "ridge" and self.steps:
            return f"it is solved for, and {self.steps} steps were asked for", "steps: 0"
        if self.kind == "bottleneck" and self.steps and not self.width:
            return f"of width 0, it has nothing to train in {self.steps} steps", "steps: 0, or a width"
        if self.kind == "c2c" and not self.width:
            return "its width is 0", "a width of 1 or more"
        if self.kind == "c2c" and (self.guard or self.attention):
            return (
                f"a guard of {self.guard} and an attention loss of {self.attention} are for fusers of texts that the "
                "receiver does not see",
                "neither",
            )
        return None


def load_training(path: Path) -> Training:
    """Read a training's configuration from YAML; unknown keys are errors.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is not a valid configuration.
    """
    return read_yaml(path, Training, "configuration", "See experiments/fusers/ for examples.")
