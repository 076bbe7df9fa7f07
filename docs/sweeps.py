"""The generated tables of sweeps: a table for each cell of the newest finished run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runs import ROOT, asked, link, newest_sweep, unfinished

FRONTIER = ROOT / "docs" / "figures" / "frontier.svg"


def frontier_table(cells: str = "", experiment: str = "frontier") -> str:
    """Return what each arm of a sweep reaches for its bytes, a table for each cell with a text in its name."""
    from unspoken.lab.tables import frontier_markdown

    return _by_cell(experiment, frontier_markdown, cells)


def frontier_section(cells: str) -> str:
    """Return the README's figure of the newest `frontier` and the tables of some of its cells."""
    table = frontier_table(cells)
    if newest_sweep("frontier") is None:
        return table
    alt = "Score of every arm against the bytes it moves, with 95 % intervals, a panel for each task and model"
    return f"![{alt}]({FRONTIER.relative_to(ROOT)})\n\n{table}"


def compose_table(cells: str = "") -> str:
    """Return what each way to compose reaches, and how much it reads again for that, a table for each cell."""
    return _by_cell("compose", _costs, cells)


def concat_table(cells: str = "") -> str:
    """Return what lying side by side costs, with and without the senders' prompts, a table for each cell."""
    return _by_cell("concat", _costs, cells)


def channels_table(cells: str = "") -> str:
    """Return what the other ways of handing over reach, a table for each cell of the newest `channels`."""
    return _by_cell("channels", _costs, cells)


def crossmodel_table(cells: str = "") -> str:
    """Return what understanding handed over between two models is worth, a table for each cell of the newest run."""
    return _by_cell("crossmodel", _costs, cells)


def masking_table() -> str:
    """Return what whole layers reach with a mask for each and with the published one, a line for each cell."""
    from unspoken.lab.tables import rows

    run = newest_sweep("frontier")
    if run is None:
        return "No run of `frontier` is committed yet."
    folder, metrics = run
    arms = ("layers@0.7", "layers:published@0.7", "layers@0.3", "layers:published@0.3")
    lines = [f"| cell, score in % [95 % interval] | {' | '.join(f'`{arm}`' for arm in arms)} |"]
    lines.append(f"|---|{'---:|' * len(arms)}")
    for key, of in metrics["cells"].items():
        score = {row.arm: row.cells["score"].text for row in rows(of)}
        name = f"{key} (pilot)" if of["pilot"] else key
        if score.keys() & set(arms):
            lines.append(f"| {name} | {' | '.join(score.get(arm, '-') for arm in arms)} |")
    return "\n".join([*lines, "", f"Run: {link(folder)}{unfinished(metrics)}."])


def phase_three_runs() -> str:
    """Return links to the newest runs of phase 3, a line for each of its commands."""
    lines = []
    for experiment in ("frontier", "compose", "concat", "channels"):
        run = newest_sweep(experiment)
        lines.append(f"- `unspoken run experiments/{experiment}.yaml`: {'not yet' if run is None else link(run[0])}")
    benches = sorted((ROOT / "results" / "bench-codecs").glob("*/metrics.json"))
    links = ", ".join(link(path.parent) for path in benches)
    return "\n".join([*lines, f"- `unspoken bench codecs`: {links or 'not yet'}"])


def fused_table(fuser: str) -> str:
    """Return what a fuser is worth in the newest `crossmodel`, a line for each cell, against reading and text."""
    found = asked("crossmodel")
    if not found.runs:
        return "No run of `crossmodel` is committed yet."
    lines = [
        "| task | questions | fused, % | own reading | none | another text "
        "| content gain, points [95 % interval] | of what reading gains, % | bytes "
        "| against `text@32`: points, time | against `text`: points, time |",
        f"|---|{'---:|' * 10}",
    ]
    for key, of in found.cells.items():
        subject, shares = of["subject"], []
        if subject != f"fused:{fuser}":
            continue
        for arm in (subject, "full-text", "none", of["control"]):
            score = of["arms"][arm]["score"]
            shares.append(f"{100 * score['mean']:.1f}")
        gain, pgr = _points(of["content_gain"]), _part(of["pgr"][subject])
        texts = [_against(of["claims"].get(text)) for text in ("text@32", "text")]
        moved = f"{of['arms'][subject]['bytes'] / 1e6:.2f} MB"
        cells = [
            key.split("/")[0],
            str(of["items"]),
            *shares,
            gain,
            pgr,
            moved,
            *texts,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    timed = min(claim["timed_items"] for of in found.cells.values() for claim in of["claims"].values())
    told = f"Times from {timed} questions run alone, which give the order of magnitude. Run: {found.links}."
    return "\n".join([*lines, "", told])


def enricher_sentences() -> str:
    """Return what C2C's fuser adds to the receiver's own reading in the newest `crossmodel`, and why."""
    lines = []
    for key, of in asked("crossmodel").cells.items():
        fused, zero, deranged, own = (
            _share(of, arm)
            for arm in ("fused:qwen-smollm2-c2c", "fused-zero:qwen-smollm2-c2c", "fused-deranged:qwen-smollm2-c2c",
                        "fused-self:smollm2-self-c2c")
        )  # fmt: skip
        if fused and zero and own:
            lines.append(
                f"- {key.split('/')[0]}, {of['items']} questions: reading alone {_share(of, 'full-text')}, with the "
                f"fuser {fused}, with zeros in the place of the sender's columns {zero}, with the receiver as its own "
                f"sender {own}; with another text read by both {deranged}"
            )
    return "\n".join(lines)


def _share(metrics: dict[str, Any], arm: str) -> str | None:
    of = metrics["arms"].get(arm)
    return None if of is None else f"{100 * of['score']['mean']:.1f} %"


def _points(interval: dict[str, Any]) -> str:
    if interval["mean"] is None:
        return "-"
    low, high = (f"{100 * interval[end]:+.1f}" for end in ("low", "high"))
    return f"{100 * interval['mean']:+.1f} [{low}, {high}]"


def _part(interval: dict[str, Any]) -> str:
    """Return a share of what reading gains; where reading is not shown to gain there is none to tell."""
    if interval["mean"] is None:
        return "-"
    low, high = (f"{100 * interval[end]:.0f}" for end in ("low", "high"))
    return f"{100 * interval['mean']:.0f} [{low}, {high}]"


def _against(claim: dict[str, Any] | None) -> str:
    """Return how much better than a text arm, and how many times as long that takes."""
    if claim is None:
        return "-"
    ratio = claim["time_ratio"]["mean"]
    return f"{_points(claim['accuracy_difference'])}, {'-' if ratio is None else f'{ratio:.1f}x'}"


def character_table() -> str:
    """Return how often receivers follow their own card and their sender's, an arm a line."""
    run = newest_sweep("character")
    if run is None:
        return "No run of `character` is committed yet."
    folder, metrics = run
    own, theirs = (metrics["cells"][key] for key in sorted(metrics["cells"]))
    lines = ["| arm | its own card, % [95 % interval] | its sender's card, % [95 % interval] |", "|---|---:|---:|"]
    for arm in own["arms"]:
        shares = (of["arms"][arm] for of in (own, theirs))
        told = (f"{100 * of['accuracy']:.1f} [{100 * of['low']:.1f}, {100 * of['high']:.1f}]" for of in shares)
        lines.append(f"| {arm} | {' | '.join(told)} |")
    pilot = ", a pilot" if own["pilot"] else ""
    return "\n".join([*lines, "", f"{own['items']} questions{pilot}; chance 16.7 %. Run: {link(folder)}."])


def _by_cell(experiment: str, table: Callable[[dict[str, Any]], str], cells: str) -> str:
    """Return a table for each cell of the newest sweep with a text in its name; one line if there is no sweep yet."""
    found = asked(experiment)
    if not found.runs:
        return f"No run of `{experiment}` is committed yet."
    parts = []
    for key, of in found.cells.items():
        if cells in key:
            told = f"{of['items']} questions about {of['sources']} texts{', a pilot' if of['pilot'] else ''}"
            parts += [f"**{key}** ({told}; score: {'F1' if of.get('measure') == 'f1' else 'right answers'})", ""]
            parts += [table(of)]
    return "\n".join([*parts, f"Run: {found.links}."])


def _costs(metrics: dict[str, Any]) -> str:
    """Return score, PGR, share read again and time of each arm, as a Markdown table."""
    from unspoken.lab.tables import MISSING, percent, rows

    shown = ["bytes", "score", "pgr_interval", "gain_interval", "again", "total"]
    titles = {
        "bytes": "bytes moved",
        "score": "score, % [95 % interval]",
        "pgr_interval": "PGR, % [95 % interval]",
        "gain_interval": "content gain, points [95 % interval]",
        "again": "read again, %",
        "total": "total, s",
    }
    if not metrics.get("gain"):
        shown.remove("gain_interval")
    lines = [f"| arm | {' | '.join(titles[key] for key in shown)} |", f"|---|{'---:|' * len(shown)}"]
    for row in rows(metrics):
        of = metrics["arms"][row.arm]
        # What did not come as columns was not read again either.
        again = {"again": percent(of["recomputed"]) if of.get("tokens_skipped") else MISSING}
        texts = again | {key: cell.text for key, cell in row.cells.items()}
        lines.append(f"| {row.arm} | {' | '.join(texts[key].strip() for key in shown)} |")
    return "\n".join([*lines, ""])
