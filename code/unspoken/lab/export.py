"""A run's table for other programs: CSV with every figure as it was computed, LaTeX and Markdown as it is shown."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from unspoken.lab.columns import compact
from unspoken.lab.tables import markdown, ordered, rate, rows

PLAIN = (
    "n", "accuracy", "exact", "contained", "f1", "gold_logprob", "kl", "bytes", "tokens_prefilled", "tokens_skipped",
    "recomputed", "seconds_first_token", "seconds_total", "timed_items", "failures",
)  # fmt: skip
SPREAD = ("score", "content_gain", "pgr", "less_subject")
ESCAPES = str.maketrans(
    {each: f"\\{each}" for each in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
)


def as_csv(metrics: Mapping[str, Any]) -> str:
    """Return a line for each cell and arm: every figure, unrounded; what was not measured is empty.

    `less_subject` is the score of the arm the run is about (`kv`, or the first fused arm) less this arm's.
    """
    out = io.StringIO()
    ends = [f"{name}{end}" for name in SPREAD for end in ("", "_low", "_high")]
    writer = csv.DictWriter(out, ["cell", "arm", *PLAIN, *ends, "p_holm"], lineterminator="\n")
    writer.writeheader()
    for key, of in _cells(metrics).items():
        for arm in ordered(tuple(of["arms"])):
            writer.writerow({"cell": key, "arm": arm} | _figures(arm, of))
    return out.getvalue()


def as_latex(metrics: Mapping[str, Any]) -> str:
    """Return the short table of each cell for LaTeX with the package booktabs."""
    return "\n".join(_tabular(key, of) for key, of in _cells(metrics).items())


def as_markdown(metrics: Mapping[str, Any]) -> str:
    """Return the short table of each cell in GitHub's Markdown, under its name."""
    return "\n".join(f"**{key or of['experiment']}**\n\n{markdown(of)}" for key, of in _cells(metrics).items())


def _cells(metrics: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = metrics.get("cells") or {"": metrics}
    return found


def _figures(arm: str, of: Mapping[str, Any]) -> dict[str, Any]:
    told = of["arms"][arm]
    against = (of.get("against_kv") or of.get("against_subject") or {}).get(arm, {})
    spreads = {
        "score": rate(told),
        "content_gain": of.get("gain", {}).get(arm, {}),
        "pgr": of.get("pgr", {}).get(arm, {}),
        "less_subject": against,
    }
    found = {name: told.get(name) for name in PLAIN} | {"p_holm": against.get("p_holm")}
    for name, interval in spreads.items():
        found |= {name: interval.get("mean"), f"{name}_low": interval.get("low"), f"{name}_high": interval.get("high")}
    return found


def _tabular(key: str, of: Mapping[str, Any]) -> str:
    columns, note = compact(of)
    heads = [column.title.replace("\n", " ") for column in columns]
    lines = [[row.cells[column.key].text.strip() for column in columns] for row in rows(of)]
    body = "\n".join(f"{' & '.join(map(_escaped, line))} \\\\" for line in lines)
    return (
        f"% {key or of['experiment']}, {of['items']} questions. {note}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n\\toprule\n"
        f"{' & '.join(map(_escaped, heads))} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _escaped(text: str) -> str:
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", text.translate(ESCAPES)).replace("<", "$<$")
