"""The founding claim as the committed runs have it: one table, one figure, one paragraph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runs import ROOT, asked, from_docs

if TYPE_CHECKING:
    from unspoken.lab.verdict import Claim

FIGURE = ROOT / "docs" / "figures" / "claims.svg"
STANDS = {"holds": "holds", "does not hold": "**does not hold**", "not shown": "open", "not measured": "not measured"}
WHY = (
    "Why: who does not know the question has to choose what to write, and writes it token by token; who knows it "
    "writes its answer alone, in a few tokens."
)


def claims_figure() -> str | None:
    """Return the figure of the newest `claims`; None if no cell is finished."""
    from unspoken.lab.claims_figure import claims_figure as draw

    cells = claimed()
    return draw(cells) if cells else None


def claimed() -> dict[str, dict[str, Any]]:
    """Return the metrics of each cell of the newest `claims`; where a later sweep asked it anew, of that."""
    return asked("claims").cells


def claims_runs() -> str:
    """Return where the cells come from, and which are not finished yet."""
    found = asked("claims")
    if not found.runs:
        return "No cell of `claims` is committed yet."
    timed = sorted({claim.timed_items for _, _, claims in _cells() for claim in claims})
    return f"Run: {found.links}; times from {' to '.join(map(str, timed))} items run alone."


def claims_table() -> str:
    """Return the claim against every text arm in every cell of the newest `claims`."""
    return "\n".join([*_lines(), "", from_docs(claims_runs())])


def claims_short_table() -> str:
    """Return the claim against three kinds of text: short, of any length, and written for the question."""
    return _short_table(_cells())


def claims_powered_table() -> str:
    """Return the short table of the cells that are no pilots."""
    return _short_table([cell for cell in _cells() if not cell[1]["pilot"]])


def claims_paragraph() -> str:
    """Return what the newest `claims` came to, in words for everybody: where it holds, where it does not, and why."""
    from unspoken.lab.founding import founding

    found = asked("claims")
    return " ".join([*founding(found.cells, found.left).sentences, WHY])


def agreement_sentence() -> str:
    """Return how many of the questions run alone were answered as in the batch, by engine."""
    from unspoken.lab.verdict import listed

    shares: dict[str, list[float]] = {}
    for _, of, _ in _cells():
        shares.setdefault(of["engine"], []).append(100 * of["alone_agrees"])
    told = listed(
        [
            f"{'all' if min(found) == 100 else f'{min(found):.0f} to {max(found):.0f} %'} in {engine}"
            for engine, found in shares.items()
        ]
    )
    return f"Of the answers given alone, {told} are those given in the batch, cell by cell."


def _short_table(cells: list[tuple[str, dict[str, Any], tuple[Any, ...]]]) -> str:
    from unspoken.lab.founding import KINDS
    from unspoken.lab.tables import bracket, points

    against = " | ".join(f"against `{arm}`" for arm in KINDS)
    lines = [
        f"| task, model, engine | questions | content gain, points | {against} |",
        "|---|---:|---:|---|---|---|",
    ]
    for key, of, claims in cells:
        told = {
            each.arm: f"{each.accuracy_text}: {STANDS[each.accuracy]}; {each.speed_text}: {STANDS[each.speed]}"
            for each in claims
        }
        worth = points(of["content_gain"]["mean"]) + bracket(of["content_gain"], points)
        items = f"{of['items']}{' (pilot)' if of['pilot'] else ''}"
        lines.append(f"| {key} | {items} | {worth} | {' | '.join(told.get(arm, '-') for arm in KINDS)} |")
    return "\n".join([*lines, "", claims_runs()])


def standings(claim: Claim) -> str:
    """Return four cells of a table: the gain in accuracy and whether the claim of it holds, and the same for speed."""
    gain, ratio = claim.accuracy_text.replace(" points", ""), claim.speed_text.replace(" times", "")
    return f"{gain} | {STANDS[claim.accuracy]} | {ratio} | {STANDS[claim.speed]}"


def _lines() -> list[str]:
    from unspoken.lab.tables import bracket, points

    lines = [
        "| task, model, engine | questions | content gain, points | text arm | `kv` minus text, points | 8 or more? "
        "| time of text / time of `kv` | 2 or more? |",
        "|---|---:|---:|---|---:|---|---:|---|",
    ]
    for key, of, claims in _cells():
        worth = points(of["content_gain"]["mean"]) + bracket(of["content_gain"], points)
        for claim in claims:
            items = f"{of['items']}{' (pilot)' if of['pilot'] else ''}"
            lines.append(f"| {key} | {items} | {worth} | `{claim.arm}` | {standings(claim)} |")
    return lines


def _cells() -> list[tuple[str, dict[str, Any], tuple[Any, ...]]]:
    from unspoken.lab.verdict import claims

    return [(key, of, claims(of)) for key, of in claimed().items()]
