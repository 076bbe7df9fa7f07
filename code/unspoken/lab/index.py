"""All runs in a results folder at a glance, newest first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from unspoken.errors import StorageError, UsageError
from unspoken.lab.sweeprun import open_sweep
from unspoken.lab.verdict import judge


class Entry(msgspec.Struct, frozen=True):
    """A run, or a cell of a sweep.

    Attributes:
        folder: From the results folder on.
        experiment: Its name.
        cell: Task, model and engine in a sweep; empty for what is none.
        started: UTC, as the folder's name has it.
        state: `finished`, `unfinished`, or `damaged`.
        items: Questions, or trials; None where there are none.
        pilot: Whether these are few.
        verdict: Whether understanding moved, where that was asked.
        told: Its main figure, in a few words.
        report: Its page from the results folder on, if it has one.
    """

    folder: str
    experiment: str
    cell: str
    started: str
    state: str
    items: int | None = None
    pilot: bool | None = None
    verdict: str | None = None
    told: str = ""
    report: str | None = None


def index(results: Path) -> tuple[Entry, ...]:
    """Return what lies in a results folder, newest first; the cells of a sweep each.

    Raises:
        StorageError: If there is no such folder.
    """
    if not results.is_dir():
        raise StorageError(f"There is no results folder {results}.", "Run something, or give another --results.")
    found = [entry for path in results.glob("*/*/") if path.is_dir() for entry in _entries(results, path)]
    return tuple(sorted(found, key=lambda each: (each.started, each.folder), reverse=True))


def _entries(results: Path, path: Path) -> Iterator[Entry]:
    started = path.name.partition("-")[0]
    bare = Entry(str(path.relative_to(results)), path.parent.name, "", started, "unfinished")
    try:
        if not (path / "metrics.json").is_file():
            made = _begun(bare, path, results) if (path / "env.json").is_file() else []
        else:
            metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
            cells = metrics.get("cells") or {"": metrics}
            made = [_entry(bare, path, results, key, of) for key, of in cells.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, UsageError):
        made = [msgspec.structs.replace(bare, state="damaged")]
    yield from made


def _begun(bare: Entry, path: Path, results: Path) -> list[Entry]:
    """Return a run that is not finished; of a sweep also the cells that are."""
    sweep = open_sweep(path)
    if sweep is None:
        return [bare]
    found, cells = sweep.found(), {cell.key: sweep.cell(cell) for cell in sweep.sweep.cells}
    told = f"{len(found)} of {len(cells)} cells are finished"
    entries = [_entry(bare, cells[key], results, key, of) for key, of in found.items()]
    return [*entries, msgspec.structs.replace(bare, told=told)]


def _entry(bare: Entry, path: Path, results: Path, key: str, of: Mapping[str, Any]) -> Entry:
    page = path / "report.html"
    entry = msgspec.structs.replace(
        bare,
        cell=key,
        state="finished",
        report=str(page.relative_to(results)) if page.is_file() else None,
        told=_told(of),
    )
    if "arms" not in of:
        return entry
    asked = "content_gain" in of or of.get("about", "text") != "text"
    verdict = judge(of).answer if asked else None
    return msgspec.structs.replace(entry, items=of["items"], pilot=of["pilot"], verdict=verdict)


def _told(of: Mapping[str, Any]) -> str:
    """Return the main figure of a run of any kind; empty if its kind has none."""
    from unspoken.lab.recognition.tables import error_rate
    from unspoken.lab.tables import bracket, percent, points

    gain = of.get("content_gain")
    if gain and gain.get("mean") is not None:
        return f"content gain {points(gain['mean'])}{bracket(gain, points)} points"
    if "arms" in of:
        return ", ".join(f"{arm} {percent(each.get('accuracy'))} %" for arm, each in list(of["arms"].items())[:3])
    if "top1_agreement" in of:
        return f"top-1 agreement {percent(of['top1_agreement'])} %"
    if "conditions" in of:
        return ", ".join(f"EER {name} {error_rate(each['eer'])} %" for name, each in list(of["conditions"].items())[:2])
    return _measured(of)


def _measured(of: Mapping[str, Any]) -> str:
    """Return the main figure of a benchmark, or of the training of a fuser; empty if there is none."""
    if "at_once" in of:
        return f"{of['at_once']['outcomes'].get('right', 0)} of {of['at_once']['requests']} requests at once right"
    if "planned_bytes" in of:
        taken, planned = (of[key] / (1 << 30) for key in ("peak_rss_bytes", "planned_bytes"))
        return f"at most {taken:.2f} GiB, {planned:.2f} planned"
    if "trained_parameters" in of:
        minutes = sum(of["seconds"].values()) / 60
        return f"{of['parameters'] / 1e6:.1f} million numbers, {minutes:.0f} minutes"
    rows = of.get("rows") or [{}]
    if "first_token_ratio" in rows[-1]:
        return f"first token {rows[-1]['first_token_ratio']:.1f} times as fast, {rows[-1]['tokens']:,} tokens"
    if "bytes_ratio_bf16" in rows[-1]:
        least = min(rows, key=lambda row: row["bytes_ratio_bf16"])
        return f"fewest bytes: {least['codec']}, {100 * least['bytes_ratio_bf16']:.0f} % of bfloat16's"
    return ""
