"""An experiment as data: what a YAML file in `experiments/` holds."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import msgspec

from unspoken.engines.protocol import Loading
from unspoken.errors import UsageError
from unspoken.lab.arms import DEFAULT_ARMS
from unspoken.lab.yamlfile import read_yaml

# What a file is called in messages, and where to see valid ones.
NAMED = ("experiment", "See experiments/ for examples.")
PILOT_ITEMS, FULL_ITEMS = 48, 624
# 620 paired items find a difference of 5 points with about 80 % power (arXiv 2607.26773; `unspoken power` says 77.5 %,
# where arms differ on a fifth of the questions); fewer are a pilot.
POWERED_ITEMS = 620


class LowRank(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the senders' weights differ from the receiver's, see `unspoken.engines.tuned.low_rank_copy`.

    Attributes:
        size: Of the change, against the weights.
        rank: Of the change.
        seed: Of the random matrices.
    """

    size: float
    rank: int = 8
    seed: int = 0


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is run: task, arms, model, and everything that changes a result.

    Attributes:
        name: Folder of the results.
        task: Registered task with its options: `private-facts`, `split-evidence@4`.
        data: The file a task asks from, for those that do; relative to the current directory.
        items: Questions asked in every arm.
        seed: Of the task's draw and of the bootstrap.
        arms: Registered controls and channels with options.
        model: Name, folder or hub id.
        engine: Registered engine.
        dtype, device, kv_type, context, gpu_layers, threads: How it is opened, see
            `unspoken.engines.protocol.Loading`; None is the engine's choice.
        sender: Name of the agent that reads, or of the first where several do.
        further_senders: Names of the others, where a source has several parts; as many are used as it takes.
        sender_model: What the senders run on, where it is another model; None for the receiver's.
        sender_engine: Registered engine of the senders' model.
        sender_change: Makes the senders run on a fine-tune of the model, as it were; None for the model itself.
        receiver: Name of the agent that answers.
        answer_tokens: Most tokens of an answer.
        timed_items: Items run once more one by one, alone, for the time columns.
        batch_sources: Sources handled together.
    """

    name: str = "prove"
    task: str = "private-facts"
    data: str | None = None
    items: int = PILOT_ITEMS
    seed: int = 20261123
    arms: tuple[str, ...] = DEFAULT_ARMS
    model: str = "smollm2-135m"
    engine: str = "transformers"
    dtype: str | None = None
    device: str | None = None
    kv_type: str | None = None
    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    sender: str = "lyra"
    further_senders: tuple[str, ...] = ("cc", "sender-3", "sender-4")
    sender_model: str | None = None
    sender_engine: str = "transformers"
    sender_change: LowRank | None = None
    receiver: str = "vera"
    answer_tokens: int = 6
    timed_items: int = 2
    batch_sources: int = 8

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise UsageError(
                f"The experiment's name '{self.name}' cannot be a folder's.", "Use small letters, digits and hyphens."
            )
        at_least = {"items": 2, "seed": 0, "answer_tokens": 1, "timed_items": 0, "batch_sources": 1}
        for field, least in at_least.items():
            if getattr(self, field) < least:
                raise UsageError(
                    f"The experiment's {field} is {getattr(self, field)}, expected {least} or more.", "Change it."
                )
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise UsageError(f"The experiment's arms are {list(self.arms)}.", "Name each arm once, at least one.")

    @property
    def loading(self) -> Loading:
        """How the model is opened."""
        return Loading(**{each.name: getattr(self, each.name) for each in fields(Loading)})

    @property
    def senders(self) -> tuple[str, ...]:
        """The names of those that can read parts of a source, in order; each once."""
        return tuple(dict.fromkeys((self.sender, *self.further_senders)))


def load_experiment(path: Path) -> Experiment:
    """Read an experiment from YAML; unknown keys are errors.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is not a valid experiment.
    """
    return read_yaml(path, Experiment, *NAMED)
