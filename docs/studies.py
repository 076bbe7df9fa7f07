"""The generated tables of phase 8: hops, length, layout, language, models, contradictions, and what was never said."""

from __future__ import annotations

from typing import Any

from claims import claimed, claims_runs
from runs import ROOT, committed_sweep, link, unfinished

CURVES = ROOT / "docs" / "figures" / "curves.svg"
HOPS = (1, 2, 3, 5)
TOLD = ("none", "full-text", "text-asked@32", "kv", "kv-deranged")


def curves_figure() -> str:
    """Return the figure of the newest `curves`."""
    from unspoken.lab.curves_figure import curves_figure as draw

    return draw(committed_sweep("curves")[1]["cells"])


def hops_table() -> str:
    """Return what is left after so many hops, a line for each channel, and what came of the controls."""
    from unspoken.lab.curves_figure import hop_lines

    folder, metrics = committed_sweep("curves")
    lines = [f"| handed on by, hops | {' | '.join(f'after {hops}, %' for hops in HOPS)} |"]
    lines.append(f"|---|{'---:|' * len(HOPS)}")
    for channel, line in hop_lines(metrics["cells"]).items():
        scores = {hops: _interval(of) for hops, of in line}
        lines.append(f"| `{channel}` | {' | '.join(scores.get(hops, '-') for hops in HOPS)} |")
    of = next(of for key, of in metrics["cells"].items() if key.endswith("hops"))
    beside = ", ".join(f"`{arm}` {_score(of, arm)}" for arm in ("none", "full-text", "kv-deranged"))
    return "\n".join([*lines, "", f"{_asked(of)}; beside them {beside}. {_run(folder, metrics)}"])


def lengths_table() -> str:
    """Return score and time by the length of the text, a line for each length."""
    from unspoken.lab.curves_figure import length_cells, receiver_seconds
    from unspoken.lab.tables import bracket, points

    folder, metrics = committed_sweep("curves")
    arms = ("full-text", "kv", "kv+int4", "text@64", "text-asked@32", "kv-deranged")
    lines = [
        f"| columns | questions | {' | '.join(f'`{arm}`, %' for arm in arms)} | content gain, points "
        "| time of `text@64` / `kv` | of `text-asked@32` / `kv` | of `full-text` / `kv` "
        "| sender's reading in the time of `text@64`, % | receiver alone: `full-text` / `kv` |",
        f"|---:|---:|{'---:|' * (len(arms) + 6)}",
    ]
    for columns, of in length_cells(metrics["cells"]):
        text, reading, kv = (of["arms"][arm] for arm in ("text@64", "full-text", "kv"))
        gain = of["content_gain"]
        cells = [
            f"{columns:,.0f}",
            f"{of['items']}",
            *(_score(of, arm) for arm in arms),
            points(gain["mean"]) + bracket(gain, points),
            *(_times(of["claims"][arm]["time_ratio"]) for arm in ("text@64", "text-asked@32")),
            f"{reading['seconds_total'] / kv['seconds_total']:.1f}",
            f"{100 * text['seconds']['capture'] / text['seconds_total']:.0f}",
            f"{(receiver_seconds(reading) or 0.0) / (receiver_seconds(kv) or 1.0):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Pilots; times from two items run alone. {_run(folder, metrics)}"])


def shifts_table() -> str:
    """Return what another layout or language than the question's leaves, a line for each cell."""
    folder, metrics = committed_sweep("shifts")
    return f"{_told(metrics['cells'], TOLD)}\n\n{_run(folder, metrics)}"


def models_table() -> str:
    """Return what columns are worth on each model and engine, on facts nobody can know, from the newest `claims`."""
    cells = {key: of for key, of in claimed().items() if key.startswith("private-facts/")}
    return f"{_told(cells, TOLD)}\n\n{claims_runs()}"


def need_free_table() -> str:
    """Return what a cache adds to a question that the receiver reads whole, a line for each set of questions."""
    from unspoken.lab.tables import bracket, points

    folder, metrics = committed_sweep("need-free")
    lines = [
        f"| questions of | asked | {' | '.join(f'`{arm}`, %' for arm in TOLD)} | `kv` - `none`, points "
        "| content gain, points | none of it within 5 points (TOST) |",
        f"|---|---:|{'---:|' * (len(TOLD) + 2)}---|",
    ]
    for of in metrics["cells"].values():
        told, none = of["no_content"], of["against_kv"]["none"]
        cells = [
            of["task"]["version"].partition("/")[0],
            f"{of['items']}{' (pilot)' if of['pilot'] else ''}",
            *(_score(of, arm) for arm in TOLD),
            *(points(each["mean"]) + bracket(each, points) for each in (none, of["content_gain"])),
            f"{'shown' if told['equal'] else 'not shown'}{bracket(told, points)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"The last interval is the 90 % one. {_run(folder, metrics)}"])


def unsaid_table() -> str:
    """Return how often states of mind were told apart in the newest `unsaid`, a line for each cell."""
    folder, metrics = committed_sweep("unsaid")
    arms = ("full-text", "text@64", "text-asked@64", "kv", "kv-deranged")
    return f"{_told(metrics['cells'], arms, counted='pairs')}\n\n{_run(folder, metrics)}"


def auroc_sentence() -> str:
    """Return how well the odds of a single answer tell whether the sender knows, in the newest `unsaid`."""
    _, metrics = committed_sweep("unsaid")
    of = next(of for key, of in metrics["cells"].items() if "knowing" in key)["twins"]["arms"]
    told = {arm: of[arm]["auroc"] for arm in ("kv", "kv-deranged", "text-asked@64", "text@64", "full-text")}
    areas = ", ".join(
        f"`{arm}` {area['mean']:.2f} [{area['low']:.2f}, {area['high']:.2f}]" for arm, area in told.items()
    )
    return f"AUROC of the sender's uncertainty (`knowing`, single answers; chance is 0.5): {areas}."


def conflict_table() -> str:
    """Return whom the receiver believes when two senders contradict each other, a line for each way to hand over."""
    folder, metrics = committed_sweep("conflict")
    first, second = (_said(metrics, which) for which in ("first", "second"))
    ways = {
        "full-text": "text, text",
        "kv": "cache, cache",
        "parts:kv,full-text": "cache, then text",
        "parts:full-text,kv": "text, then cache",
        "none": "nothing",
        "kv-deranged": "caches of other texts",
    }
    lines = ["| handed over | arm | the first's answer, % | the second's, % |", "|---|---|---:|---:|"]
    lines += [f"| {way} | `{arm}` | {_score(first, arm)} | {_score(second, arm)} |" for arm, way in ways.items()]
    return "\n".join([*lines, "", f"{_asked(first)}. {_run(folder, metrics)}"])


def conflict_sentence() -> str:
    """Return how often the part that came as text was believed, over both orders."""
    _, metrics = committed_sweep("conflict")
    first, second = (_said(metrics, which)["arms"] for which in ("first", "second"))
    text = (second["parts:kv,full-text"]["accuracy"] + first["parts:full-text,kv"]["accuracy"]) / 2
    cache = (first["parts:kv,full-text"]["accuracy"] + second["parts:full-text,kv"]["accuracy"]) / 2
    return (
        f"Over both orders the receiver gives the answer of the part that came as text {100 * text:.1f} % of the time, "
        f"and of the part that came as a cache {100 * cache:.1f} %."
    )


def _told(cells: dict[str, Any], arms: tuple[str, ...], counted: str = "questions") -> str:
    """Return score of some arms and content gain, a line for each cell."""
    from unspoken.lab.tables import bracket, points

    lines = [f"| cell | {counted} | {' | '.join(f'`{arm}`, %' for arm in arms)} | content gain, points |"]
    lines.append(f"|---|---:|{'---:|' * (len(arms) + 1)}")
    for key, of in cells.items():
        asked = f"{of['items']}{' (pilot)' if of['pilot'] else ''}"
        worth = points(of["content_gain"]["mean"]) + bracket(of["content_gain"], points)
        lines.append(f"| {key} | {asked} | {' | '.join(_score(of, arm) for arm in arms)} | {worth} |")
    return "\n".join(lines)


def _said(metrics: dict[str, Any], which: str) -> dict[str, Any]:
    return next(of for key, of in metrics["cells"].items() if f"says={which}" in key)


def _score(of: dict[str, Any], arm: str) -> str:
    from unspoken.lab.tables import rate

    return _interval(rate(of["arms"][arm]))


def _interval(of: Any) -> str:
    from unspoken.lab.tables import bracket, percent

    return f"{percent(of['mean'])}{bracket(of, percent)}"


def _times(ratio: dict[str, Any]) -> str:
    return f"{ratio['mean']:.1f} [{ratio['low']:.1f}, {ratio['high']:.1f}]"


def _asked(of: dict[str, Any]) -> str:
    return f"{of['items']} questions about {of['sources']} texts{', a pilot' if of['pilot'] else ''}"


def _run(folder: Any, metrics: dict[str, Any]) -> str:
    return f"Run: {link(folder)}{unfinished(metrics)}."
