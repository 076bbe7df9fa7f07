"""A sweep as data: several experiments that share most of their fields and one run folder.

name: frontier
items: 300
cells:
- {task: private-facts, model: smollm2-135m}
- {task: reading, data: data/local/xquad-en-dev.jsonl, answer_tokens: 12}
- {task: private-facts, seed: 7, label: other-facts}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from unspoken.errors import UsageError
from unspoken.lab.experiment import NAMED, Experiment, load_experiment
from unspoken.lab.yamlfile import read_yaml

CELLS, LABEL = "cells", "label"


class Cell(msgspec.Struct, frozen=True):
    """One experiment of a sweep.

    Attributes:
        experiment: The fields that all share, with its own in their place.
        label: Tells it from another cell of the same task, model and engine.
    """

    experiment: Experiment
    label: str = ""

    @property
    def key(self) -> str:
        """Its name in `metrics.json`: task, model and engine; a model file has its stem's name."""
        path = Path(self.experiment.model)
        model = path.stem if path.suffix == ".gguf" else path.name
        end = f"-{self.label}" if self.label else ""
        return f"{self.experiment.task}/{model}/{self.experiment.engine}{end}"

    @property
    def folder(self) -> str:
        """Its folder's name below `cells/`."""
        return re.sub(r"[^A-Za-z0-9._@=-]+", "-", self.key)


class Sweep(msgspec.Struct, frozen=True):
    """Several experiments in one run folder.

    Attributes:
        name: Folder of the results.
        cells: The experiments, each with a folder of its own.
    """

    name: str
    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        folders = [cell.folder for cell in self.cells]
        twice = [cell.key for cell in self.cells if folders.count(cell.folder) > 1]
        if not self.cells or twice:
            raise UsageError(
                f"The sweep '{self.name}' has {'two cells ' + twice[0] if twice else 'no cells'}.",
                "Give each cell another task, model or engine, or a `label` of its own.",
            )

    def matching(self, wanted: Sequence[str]) -> tuple[Cell, ...]:
        """Return the cells whose key contains one of some texts; all of them if none is given.

        Raises:
            UsageError: If a text is in no key.
        """
        for text in wanted:
            if not any(text in cell.key for cell in self.cells):
                raise UsageError(
                    f"No cell of the sweep '{self.name}' has '{text}' in its name.",
                    f"There are {', '.join(cell.key for cell in self.cells)}.",
                )
        return tuple(cell for cell in self.cells if not wanted or any(text in cell.key for text in wanted))

    def encoded(self) -> bytes:
        """Return the sweep as YAML with every field of every cell, in the form in which it can be run."""
        cells = [
            ({LABEL: cell.label} if cell.label else {})
            | {name: value for name, value in msgspec.to_builtins(cell.experiment).items() if name != "name"}
            for cell in self.cells
        ]
        return msgspec.yaml.encode({"name": self.name, CELLS: cells})


def load_plan(path: Path) -> Experiment | Sweep:
    """Read an experiment or a sweep from YAML; unknown keys are errors.

    Raises:
        StorageError: If the file cannot be read.
        UsageError: If it is neither.
    """
    data = read_yaml(path, object, *NAMED)
    if not isinstance(data, dict) or CELLS not in data:
        return load_experiment(path)
    return sweep_of(data, path)


def sweep_of(data: Mapping[str, Any], path: Path) -> Sweep:
    """Return the sweep that a mapping describes.

    Args:
        data: Shared fields, and `cells`, each a mapping of the fields that differ.
        path: Where it was read, for messages.

    Raises:
        UsageError: If it describes none.
    """
    shared = {name: value for name, value in data.items() if name != CELLS}
    found = data[CELLS]
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise UsageError(
            f"The sweep {path} has cells that are no list of mappings.",
            "Write `cells:` with one `- {task: ..., model: ...}` for each; see experiments/ for examples.",
        )
    cells = tuple(_cell(shared, each, f"Cell {at} of the sweep {path}") for at, each in enumerate(found, start=1))
    return Sweep(cells[0].experiment.name if cells else str(path), cells)


def _cell(shared: Mapping[str, Any], own: Mapping[str, Any], described: str) -> Cell:
    label = own.get(LABEL, "")
    if not re.fullmatch(r"[a-z0-9-]*", str(label)) or "name" in own:
        raise UsageError(
            f"{described} has the label '{label}'{' and a name' if 'name' in own else ''}.",
            "A label has small letters, digits and hyphens; the name is the sweep's, and stands outside its cells.",
        )
    fields = {**shared, **{name: value for name, value in own.items() if name != LABEL}}
    try:
        return Cell(msgspec.convert(fields, Experiment), str(label))
    except msgspec.ValidationError as error:
        raise UsageError(f"{described} is not valid: {error}.", NAMED[1]) from error
