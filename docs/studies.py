"""The generated tables of phase 8: hops, length, layout, language, models, contradictions, and what was never said."""

from __future__ import annotations

from typing import Any

from runs import ROOT, link, newest_sweep, unfinished

CURVES = ROOT / "docs" / "figures" / "curves.svg"
HOPS = (1, 2, 3, 5)


def curves_figure() -> str | None:
    """Return the figure of the newest `curves`; None if no cell of it is finished."""
    from unspoken.lab.curves_figure import curves_figure as draw

    run = newest_sweep("curves")
    return None if run is None else draw(run[1]["cells"])


def hops_table() -> str:
    """Return what is left after so many hops, a line for each channel, and what came of the controls."""
    from unspoken.lab.curves_figure import hop_lines
    from unspoken.lab.tables import bracket, percent

    run = newest_sweep("curves")
    if run is None:
        return "No run of `curves` is committed yet."
    folder, metrics = run
    lines = [f"| handed on by, hops | {' | '.join(f'after {hops}, %' for hops in HOPS)} |"]
    lines.append(f"|---|{'---:|' * len(HOPS)}")
    for channel, line in hop_lines(metrics["cells"]).items():
        scores = {hops: f"{percent(of['mean'])}{bracket(of, percent)}" for hops, of in line}
        lines.append(f"| `{channel}` | {' | '.join(scores.get(hops, '-') for hops in HOPS)} |")
    of = next(of for key, of in metrics["cells"].items() if key.endswith("hops"))
    beside = ", ".join(f"`{arm}` {_score(of, arm)}" for arm in ("none", "full-text", "kv-deranged"))
    return "\n".join([*lines, "", f"{_asked(of)}; beside them {beside}. Run: {link(folder)}{unfinished(metrics)}."])


def lengths_table() -> str:
    """Return score and time by the length of the text, a line for each length."""
    from unspoken.lab.curves_figure import length_cells, receiver_seconds
    from unspoken.lab.tables import points

    run = newest_sweep("curves")
    if run is None:
        return "No run of `curves` is committed yet."
    folder, metrics = run
    arms = ("full-text", "kv", "kv+int4", "text@64", "text-asked@32", "kv-deranged")
    lines = [
        f"| columns | questions | {' | '.join(f'`{arm}`, %' for arm in arms)} | content gain, points "
        "| time of `text@64` / `kv` | of `text-asked@32` / `kv` | receiver: reading / taking in |",
        f"|---:|---:|{'---:|' * (len(arms) + 4)}",
    ]
    for columns, of in length_cells(metrics["cells"]):
        reading, taking_in = (receiver_seconds(of["arms"][arm]) for arm in ("full-text", "kv"))
        whole = [f"{of['claims'][arm]['time_ratio']['mean']:.1f}x" for arm in ("text@64", "text-asked@32")]
        mine = "-" if reading is None or taking_in is None else f"{reading / taking_in:.1f}x"
        worth = points(of["content_gain"]["mean"])
        cells = [f"{columns:,.0f}", str(of["items"]), *(_score(of, arm) for arm in arms), worth, *whole, mine]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Pilots; times from two items run alone. Run: {link(folder)}{unfinished(metrics)}."])


def shifts_table() -> str:
    """Return what another layout or language than the question's leaves, a line for each cell."""
    return _by_form("shifts", ("none", "full-text", "text-asked@32", "kv", "kv-deranged"), "")


def models_table() -> str:
    """Return what columns are worth on each model and engine, on facts nobody can know, from the newest `claims`."""
    return _by_form("claims", ("none", "full-text", "text-asked@32", "kv", "kv-deranged"), "private-facts/")


def conflict_table() -> str:
    """Return whom the receiver believes when two senders contradict each other, a line for each way to hand over."""
    from unspoken.lab.tables import bracket, percent, rate

    run = newest_sweep("conflict")
    if run is None:
        return "No run of `conflict` is committed yet."
    folder, metrics = run
    first, second = (_said(metrics["cells"], which) for which in ("first", "second"))
    ways = {
        "full-text": "text, text",
        "kv": "cache, cache",
        "parts:kv,full-text": "cache, then text",
        "parts:full-text,kv": "text, then cache",
        "none": "nothing",
        "kv-deranged": "caches of other texts",
    }
    lines = ["| handed over | arm | the first's answer, % | the second's, % |", "|---|---|---:|---:|"]
    for arm, way in ways.items():
        told = [rate(of["arms"][arm]) for of in (first, second)]
        shares = " | ".join(f"{percent(of['mean'])}{bracket(of, percent)}" for of in told)
        lines.append(f"| {way} | `{arm}` | {shares} |")
    return "\n".join([*lines, "", f"{_asked(first)}. Run: {link(folder)}{unfinished(metrics)}."])


def conflict_sentence() -> str:
    """Return how often the part that came as text was believed, over both orders."""
    run = newest_sweep("conflict")
    if run is None:
        return "Whom a receiver believes was not asked yet."
    first, second = (_said(run[1]["cells"], which) for which in ("first", "second"))
    text = [second["arms"]["parts:kv,full-text"], first["arms"]["parts:full-text,kv"]]
    cache = [first["arms"]["parts:kv,full-text"], second["arms"]["parts:full-text,kv"]]
    shares = [sum(of["accuracy"] for of in each) / 2 for each in (text, cache)]
    return (
        f"Over both orders the receiver gives the answer of the part that came as text {100 * shares[0]:.1f} % of the "
        f"time, and of the part that came as a cache {100 * shares[1]:.1f} %."
    )


def unsaid_table() -> str:
    """Return how often states of mind were told apart in the newest `unsaid`, a line for each cell."""
    from unspoken.lab.tables import bracket, percent, points

    run = newest_sweep("unsaid")
    if run is None:
        return "No run of `unsaid` is committed yet."
    folder, metrics = run
    arms = ("full-text", "text@64", "text-asked@64", "kv", "kv-deranged")
    lines = [f"| what is not said | pairs | {' | '.join(f'`{arm}`, %' for arm in arms)} | content gain, points |"]
    lines.append(f"|---|---:|{'---:|' * (len(arms) + 1)}")
    for key, of in metrics["cells"].items():
        told = [_score(of, arm) for arm in arms]
        gain = of["content_gain"]
        lines.append(
            f"| {key.partition('/')[0].partition(':')[2]} | {of['items']}{' (pilot)' if of['pilot'] else ''} "
            f"| {' | '.join(told)} | {points(gain['mean'])}{bracket(gain, percent)} |"
        )
    return "\n".join([*lines, "", f"Run: {link(folder)}{unfinished(metrics)}."])


def _by_form(experiment: str, arms: tuple[str, ...], cells: str) -> str:
    from unspoken.lab.tables import bracket, points

    run = newest_sweep(experiment)
    if run is None:
        return f"No run of `{experiment}` is committed yet."
    folder, metrics = run
    lines = [f"| cell | questions | {' | '.join(f'`{arm}`, %' for arm in arms)} | content gain, points |"]
    lines.append(f"|---|---:|{'---:|' * (len(arms) + 1)}")
    for key, of in metrics["cells"].items():
        if key.startswith(cells):
            gain = of["content_gain"]
            lines.append(
                f"| {key} | {of['items']}{' (pilot)' if of['pilot'] else ''} "
                f"| {' | '.join(_score(of, arm) for arm in arms)} | {points(gain['mean'])}{bracket(gain, points)} |"
            )
    return "\n".join([*lines, "", f"Run: {link(folder)}{unfinished(metrics)}."])


def _said(cells: dict[str, Any], which: str) -> dict[str, Any]:
    return next(of for key, of in cells.items() if f"says={which}" in key)


def _score(of: dict[str, Any], arm: str) -> str:
    from unspoken.lab.tables import bracket, percent, rate

    found = rate(of["arms"][arm])
    return f"{percent(found['mean'])}{bracket(found, percent)}"


def _asked(of: dict[str, Any]) -> str:
    return f"{of['items']} questions about {of['sources']} texts{', a pilot' if of['pilot'] else ''}"
