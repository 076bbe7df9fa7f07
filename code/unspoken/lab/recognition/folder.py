"""The run folder of a study of recognition.

results/<name>/<UTC time>-<short id>/
    config.yaml             the study as it was run
    env.json                machine, versions, model, gate, when and by which code
    features/               what agents' columns average to; large, made first, not needed afterwards
        revisions.json      the code that made them: a run may be gone on with by a later one
    scores.safetensors      every trial's score: `metrics.json` and `report.html` can be made again from it
    metrics.json            written last: a folder without it is an unfinished run
    report.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from unspoken.lab import folders, record
from unspoken.lab.recognition.plan import RecognitionPlan

SAME = ("model", "engine", "packages")
"""What must be the same, besides the study, to go on with a run; see `features/revisions.json` for the code."""


@contextmanager
def open_folder(results: Path, plan: RecognitionPlan, env: Mapping[str, Any]) -> Iterator[Path]:
    """Hold the unfinished run of the same study, or a new one, alone.

    Args:
        results: The results folder.
        plan: The study.
        env: What is recorded about machine, software and model.

    Raises:
        StorageError: If the folder cannot be written.
        UsageError: If another process is at it.
    """
    same = [msgspec.to_builtins(plan), {key: env[key] for key in SAME}]
    path = folders.opened(results / plan.name, same)
    with record.RunFolder(path).alone():
        with folders.writable(path):
            folders.write(path / "config.yaml", msgspec.yaml.encode(plan))
            record.write_env(path, env)
        yield path
