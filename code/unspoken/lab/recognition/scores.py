"""What a study measured: for each condition, how every tested cache scored against every enrolled agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from unspoken.errors import UsageError
from unspoken.identity.metrics import Floats, Indices, Trials
from unspoken.lab import folders

FILE = "scores.safetensors"
PARTS = ("scores", "tested", "text")


@dataclass(frozen=True, eq=False)
class Scores:
    """One condition.

    Attributes:
        scores: `[tests, enrolled]`, NaN for pairs that are no trial.
        tested: `[tests]`, index of the agent whose cache is tested, in the numbering of the columns.
        text: `[tests]`, index of the text.
    """

    scores: Floats
    tested: Indices
    text: Indices

    def trials(self) -> Trials:
        """Return the comparisons one by one."""
        tests, enrolled = np.nonzero(~np.isnan(self.scores))
        tested = self.tested[tests]
        return Trials(self.scores[tests, enrolled], tested == enrolled, enrolled, tested, self.text[tests])


def write_scores(folder: Path, found: Mapping[str, Scores], facts: Mapping[str, object]) -> None:
    """Write the scores of a run; floats are kept as float32.

    Args:
        folder: The run folder.
        found: By condition.
        facts: What else has to be known to compute metrics again.

    Raises:
        StorageError: If they cannot be written.
    """
    tensors = {}
    for name, each in found.items():
        tensors[f"{name}/scores"] = torch.from_numpy(each.scores).to(torch.float32)
        tensors[f"{name}/tested"] = torch.from_numpy(each.tested).to(torch.int32)
        tensors[f"{name}/text"] = torch.from_numpy(each.text).to(torch.int32)
    with folders.writable(folder):
        folders.write(folder / FILE, save(tensors, {"facts": json.dumps(facts), "order": json.dumps(list(found))}))


def read_scores(folder: Path) -> tuple[dict[str, Scores], dict[str, object]]:
    """Read the scores of a run back, with the facts beside them.

    Raises:
        UsageError: If there are none, or they are damaged.
    """
    path = folder / FILE
    try:
        data = path.read_bytes()
        tensors, length = load(data), int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + length])["__metadata__"]
        facts: dict[str, object] = json.loads(told["facts"])
        names: list[str] = json.loads(told["order"])  # Tensors lie in an order of the format's own.
        parts = {name: [tensors[f"{name}/{part}"].numpy() for part in PARTS] for name in names}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(
            f"The run in {folder} has no sound {FILE}: {error}.", "Finish it: `unspoken identity evaluate`."
        ) from error
    return {
        name: Scores(scores.astype(np.float64), tested.astype(np.int64), text.astype(np.int64))
        for name, (scores, tested, text) in parts.items()
    }, facts
