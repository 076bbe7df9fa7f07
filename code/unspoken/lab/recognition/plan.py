"""A study of recognition as data: what a YAML file such as `experiments/identity.yaml` holds."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import msgspec

from unspoken.engines.protocol import Loading
from unspoken.errors import UsageError
from unspoken.lab.yamlfile import read_yaml

CONDITIONS = (
    "card", "reworded", "unshared", "memory", "dialogue", "brief", "mimicry", "self-written",
    "kv+float32", "kv+int8", "kv+int4", "need@0.3", "two-hops", "llamacpp",
)  # fmt: skip


class RecognitionPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who is told apart, by what, and what is done to their caches.

    Attributes:
        name: Folder of the results.
        data: File of texts, one JSON object with a `context` per line; relative to the current directory.
        seed: Of agents, texts, what agents write, and the bootstrap.
        development: Agents that projections and calibrations are learned from.
        cohort: Agents whose reading of the same words is taken away.
        agents: Agents that are enrolled and tested.
        development_texts: Texts the development agents read, each some of them.
        development_readings: Texts each of them reads in each of its wordings.
        enrolment_texts: Texts each test agent is enrolled with, in its card's words.
        test_texts: Texts it is tested with, in every condition.
        text_tokens: Most tokens of a text, which ends with a sentence.
        written_tokens: Tokens an agent writes where it writes itself.
        twins: Agents of which several instances write, told apart by nothing but their seed.
        conditions: How agents are told, or by which channel their columns come.
        draws: Resamples of agents and texts behind each interval.
        model: Name, folder or hub id.
        engine: Registered engine.
        dtype, device, kv_type, context, gpu_layers, threads: How it is opened, see
            `unspoken.engines.protocol.Loading`; None is the engine's choice.
    """

    name: str = "identity"
    data: str | None = None
    seed: int = 20261125
    development: int = 100
    cohort: int = 8
    agents: int = 30
    development_texts: int = 60
    development_readings: int = 6
    enrolment_texts: int = 5
    test_texts: int = 20
    text_tokens: int = 96
    written_tokens: int = 64
    twins: int = 8
    conditions: tuple[str, ...] = CONDITIONS
    draws: int = 1000
    model: str = "smollm2-135m"
    engine: str = "transformers"
    dtype: str | None = None
    device: str | None = None
    kv_type: str | None = None
    context: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise UsageError(f"The name '{self.name}' cannot be a folder's.", "Use small letters, digits and hyphens.")
        least = {"development": 6, "cohort": 1, "agents": 5, "development_texts": 2, "development_readings": 1,
                 "enrolment_texts": 1, "test_texts": 2, "text_tokens": 16, "written_tokens": 8, "twins": 0,
                 "draws": 100}  # fmt: skip
        for field, smallest in least.items():
            if getattr(self, field) < smallest:
                raise UsageError(
                    f"The study's {field} is {getattr(self, field)}, expected {smallest} or more.", "Change it."
                )
        if "card" not in self.conditions or len(set(self.conditions)) != len(self.conditions):
            raise UsageError(
                f"The study's conditions are {list(self.conditions)}.", "Name each once, and `card` among them."
            )

    @property
    def loading(self) -> Loading:
        """How the model is opened."""
        return Loading(**{each.name: getattr(self, each.name) for each in fields(Loading)})

    @property
    def pilot(self) -> bool:
        """Whether there are fewer than the 60 agents and 3,000 non-target trials that a rate of 1 % asks for."""
        everyone = self.development + self.cohort + self.agents
        return everyone < 60 or self.agents * (self.agents - 1) * self.test_texts < 3000


def load_recognition(path: Path) -> RecognitionPlan:
    """Read a study from YAML; unknown keys are errors.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is not a valid study.
    """
    return read_yaml(path, RecognitionPlan, "study", "See experiments/identity.yaml for one.")
