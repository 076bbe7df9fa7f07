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

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from unspoken.lab import folders, record
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.spec import fingerprint

SAME = ("model", "engine", "packages")
"""What must be the same, besides the study, to go on with a run; see `features/revisions.json` for the code."""


def open_folder(results: Path, plan: RecognitionPlan, env: Mapping[str, Any]) -> Path:
    """Return the unfinished run of the same study, or a new one.

    Args:
        results: The results folder.
        plan: The study.
        env: What is recorded about machine, software and model.

    Raises:
        StorageError: If the folder cannot be written.
    """
    same = [msgspec.to_builtins(plan), {key: env[key] for key in SAME}]
    short = fingerprint(json.dumps(same, sort_keys=True))[:8]
    parent = results / plan.name
    with folders.writable(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with FileLock(parent / ".lock"):
            path = folders.unfinished(parent, short) or folders.new_folder(parent, short)
        folders.write(path / "config.yaml", msgspec.yaml.encode(plan))
        record.write_env(path, env)
    return path
