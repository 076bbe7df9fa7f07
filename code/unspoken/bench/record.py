"""Keep a benchmark's figures in a run folder, with what is needed to judge them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from unspoken.engines.gate import GateResult
from unspoken.engines.protocol import Engine
from unspoken.errors import StorageError
from unspoken.lab.provenance import command_line, machine, packages, revision
from unspoken.spec import fingerprint


def keep(experiment: str, found: dict[str, Any], engine: Engine | None, gate: GateResult | None, results: Path) -> Path:
    """Write config, environment and figures of a benchmark and return the folder.

    Raises:
        StorageError: If the results folder cannot be written.
    """
    now = datetime.now(UTC)
    config = {key: value for key, value in found.items() if key != "rows"}
    env = {
        "starts": [{"utc": f"{now:%Y-%m-%dT%H:%M:%SZ}", "command": command_line()}],
        "machine": machine(),
        "packages": packages(),
        "revision": revision(),
    }
    if engine is not None:  # Some figures are those of no model.
        env |= {
            "engine": {"name": engine.name, "version": engine.version, "dtype": engine.dtype},
            "model": {"name": engine.spec.name, "weights": engine.spec.weights},
            "gate": msgspec.to_builtins(gate),
        }
    short = fingerprint(json.dumps([found, env["starts"]], sort_keys=True))[:8]
    folder = results / experiment / f"{now:%Y%m%dT%H%M%SZ}-{short}"
    try:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_bytes(msgspec.yaml.encode(config))
        for name, data in (("env.json", env), ("metrics.json", found)):
            (folder / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"The results folder {folder} cannot be written: {error.strerror}.", "Choose another with --results."
        ) from error
    return folder
