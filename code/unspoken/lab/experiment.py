"""An experiment as data: what a YAML file in `experiments/` holds."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import msgspec

from unspoken.engines.protocol import Loading
from unspoken.errors import StorageError, UsageError
from unspoken.lab.arms import DEFAULT_ARMS

PILOT_ITEMS, FULL_ITEMS = 48, 624
# 620 paired items find a difference of 5 points with 80 % power (arXiv 2607.26773); fewer are a pilot.
POWERED_ITEMS = 620


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is run: task, arms, model, and everything that changes a result.

    Attributes:
        name: Folder of the results.
        task: Registered task.
        items: Questions asked in every arm.
        seed: Of the task's draw and of the bootstrap.
        arms: Registered controls and channels with options.
        model: Name, folder or hub id.
        engine: Registered engine.
        dtype, device, kv_type, context, gpu_layers, threads: How it is opened, see
            `unspoken.engines.protocol.Loading`; None is the engine's choice.
        sender: Name of the agent that reads.
        receiver: Name of the agent that answers.
        answer_tokens: Most tokens of an answer.
        timed_items: Items run once more one by one, alone, for the time columns.
        batch_sources: Sources handled together.
    """

    name: str = "prove"
    task: str = "private-facts"
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
    receiver: str = "vera"
    answer_tokens: int = 6
    timed_items: int = 2
    batch_sources: int = 8

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise UsageError(
                f"The experiment's name '{self.name}' cannot be a folder's.", "Use small letters, digits and hyphens."
            )
        for field, least in (("items", 2), ("answer_tokens", 1), ("timed_items", 0), ("batch_sources", 1)):
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
    def pilot(self) -> bool:
        """Whether there are too few items to tell a difference of 5 points."""
        return self.items < POWERED_ITEMS


def load_experiment(path: Path) -> Experiment:
    """Read an experiment from YAML; unknown keys are errors.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is not a valid experiment.
    """
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=Experiment)
    except OSError as error:
        raise StorageError(
            f"The experiment {path} cannot be read: {error.strerror}.", "Give an existing YAML file."
        ) from error
    except msgspec.DecodeError as error:
        raise UsageError(f"The experiment {path} is not valid: {error}.", "See experiments/ for examples.") from error
