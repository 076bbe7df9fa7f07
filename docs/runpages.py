"""Pages of the site made from results/: all runs, a page for each, and the tables that documents quote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import claims
import generated
import sweeps
from runs import ROOT

RESULTS = ROOT / "results"

TABLES = {
    "Does content move": (generated.prove_sentence, generated.prove_table),
    "The founding claim": (claims.claims_paragraph, claims.claims_short_table),
    "A second engine": (generated.second_engine_table,),
    "Fewer bytes": (sweeps.frontier_table,),
    "Several senders": (sweeps.compose_table, sweeps.concat_table),
    "Other channels, and fine-tunes": (sweeps.channels_table,),
    "Two different models": (sweeps.crossmodel_table, generated.fusers_table),
    "Whose cache is this": (generated.identity_table,),
    "Who a receiver is afterwards": (sweeps.character_table,),
    "Cost of a hand-over": (generated.handoff_table, generated.moving_table, generated.sequential_table),
    "Codecs": (generated.codecs_table,),
}
"""Headings of the page of tables, and what makes the tables below them."""


def pages() -> Iterator[tuple[str, str]]:
    """Return each page's place in the site and its text; links in it are paths of the repository."""
    from unspoken.lab.index import index

    runs = [(folder, list(entries)) for folder, entries in groupby(index(RESULTS), key=lambda each: each.folder)]
    yield "results/index.md", _index(runs)
    tables = ["# Tables", "The tables that documents quote, each from the newest committed run of its kind."]
    for title, makers in TABLES.items():
        tables += [f"## {title}", *(make() for make in makers)]
    yield "results/tables.md", "\n\n".join(tables)
    for folder, entries in runs:
        yield f"results/{folder}.md", _run(folder, entries)


def reports() -> Iterator[Path]:
    """Return the reports of all runs and of the cells of sweeps."""
    return iter(sorted(RESULTS.rglob("report.html")))


def _index(runs: list[tuple[str, list[Any]]]) -> str:
    parts = [
        "# Results",
        "Every committed run, by experiment, the newest first. A *pilot* is too small to be quoted. What the figures "
        "mean is in [the protocol](docs/protocol.md), what is in a folder in [run folders](results/README.md); the "
        "tables that documents quote stand on [one page](results/tables.md).",
    ]
    by_name = sorted(runs, key=lambda run: (run[0].startswith("bench-"), run[0].partition("/")[0]))
    for experiment, group in groupby(by_name, key=lambda run: run[0].partition("/")[0]):
        parts += [f"## {experiment}", _table([entry for _, entries in group for entry in entries])]
    return "\n\n".join(parts)


def _table(entries: list[Any]) -> str:
    """Return a line for each run or cell; columns that none of them fills are left out."""
    lines = [_line(entry) for entry in entries]
    filled = [title for title in lines[0] if any(line[title] for line in lines)]
    rule = ("---:" if title == "questions" else "---" for title in filled)
    cells = (filled, rule, *([line[title] for title in filled] for line in lines))
    return "\n".join(f"| {' | '.join(each)} |" for each in cells)


def _line(entry: Any) -> dict[str, str]:
    model, engine = _on(entry)
    started = datetime.strptime(entry.started, "%Y%m%dT%H%M%SZ")
    return {
        "run": f"[{started:%Y-%m-%d %H:%M}](results/{entry.folder})",
        "task": entry.cell.partition("/")[0],
        "model": model,
        "engine": engine,
        "questions": "" if entry.items is None else f"{entry.items:,}{' (pilot)' if entry.pilot else ''}",
        "main figure": entry.told or ("" if entry.state == "finished" else entry.state),
        "report": f"[report](results/{entry.report})" if entry.report else "",
    }


def _on(entry: Any) -> tuple[str, str]:
    """Return the model and the engine of a run or a cell, as far as it names them."""
    if entry.cell:
        _, model, engine = entry.cell.split("/")
        return model, engine
    metrics = _read(RESULTS / entry.folder / "metrics.json")
    model = metrics.get("model") or metrics.get("name") or metrics.get("fuser") or ""
    return model["name"] if isinstance(model, dict) else model, metrics.get("engine", "")


def _run(folder: str, entries: list[Any]) -> str:
    path = RESULTS / folder
    env = _read(path / "env.json")
    commands = [start["command"] for start in env.get("starts", []) if start.get("command")]
    machine, revision = env.get("machine", {}), env.get("revision", {})
    about = {
        "machine": ", ".join(str(machine[key]) for key in ("cpu", "system", "gpu") if machine.get(key)),
        "commit": f"`{revision['commit']}`" if revision.get("commit") else "",
        "versions": ", ".join(f"{name} {version}" for name, version in env.get("packages", {}).items()),
    }
    parts = [f"# {folder}", _table(entries), "All runs: [results](results)."]
    if commands:
        parts.append("```sh\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    parts.append("\n".join(f"- {key}: {value}" for key, value in about.items() if value))
    cells = [file.parent for file in reports() if file.parent != path and path in file.parents]
    if cells:
        links = (f"- [{cell.name}]({(cell / 'report.html').relative_to(ROOT).as_posix()})" for cell in cells)
        parts += ["## Cells", "\n".join(links)]
    if (path / "config.yaml").is_file():
        parts += ["## Configuration", f"```yaml\n{(path / 'config.yaml').read_text(encoding='utf-8')}```"]
    return "\n\n".join(parts)


def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return read
