"""Begin a run as `run_study` does, or go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unspoken.lab.experiment import Experiment
from unspoken.lab.record import RunFolder


def begin(results: Path, experiment: Experiment, identity: Mapping[str, Any], env: Mapping[str, Any]) -> RunFolder:
    """The unfinished run of the same experiment and identity, or a new one, with one start more on record."""
    return RunFolder.start(RunFolder.found(results, experiment, identity).path, experiment, env)
