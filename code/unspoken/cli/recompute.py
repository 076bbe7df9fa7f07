"""`unspoken verify --recompute`: its options, computing columns again, and what is said of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from unspoken.cli.common import agent, note, require_text
from unspoken.errors import UsageError
from unspoken.manifest import compare

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.engines.protocol import Engine
    from unspoken.trust.spotcheck import SpotCheck

F = TypeVar("F", bound=Callable[..., Any])

# `unspoken.trust.spotcheck.COLUMNS`, which cannot be imported without torch.
COLUMNS = 48

_OPTIONS = (
    click.option(
        "--recompute",
        "columns",
        metavar="[K]",
        is_flag=False,
        flag_value=COLUMNS,
        type=click.IntRange(min=1),
        help=f"Compute K random columns again from the token ids in the file; K is {COLUMNS} if left out, which finds "
        "a tenth of altered columns 99 times in 100. All columns of layers 0 to 2 where the file holds a whole text.",
    ),
    click.option(
        "--deep", is_flag=True, help="With --recompute: go on to a random deeper layer, and insist on all of them."
    ),
    click.option("--agent", "name", help="With --recompute: who read the text, whose prompt stood before the columns."),
    click.option("--card", type=click.Path(), help="With --recompute: YAML card of the agent, instead of a name."),
)


@dataclass(frozen=True)
class Recompute:
    """How columns are computed again.

    Attributes:
        columns: How many random ones of layer 0, where deeper layers cannot be.
        deep: Whether a random deep layer is asked for, and no layer may be left out.
        name: Of the agent that read the text; None if nobody knows.
        card: Its YAML card, instead of a name.
    """

    columns: int
    deep: bool
    name: str | None
    card: str | None


def recompute_options(function: F) -> F:
    """Add the options of how columns are computed again; the command gets them as one value, or None, `recompute`."""

    @functools.wraps(function)
    def command(columns: int | None, deep: bool, name: str | None, card: str | None, **options: Any) -> Any:
        if columns is None and (deep or name is not None or card is not None):
            raise UsageError(
                "--deep, --agent and --card are about columns that are computed again.", "Give --recompute as well."
            )
        if name is not None:
            require_text(name, "agent's name")
        asked = None if columns is None else Recompute(columns, deep, name, card)
        return function(recompute=asked, **options)

    for option in reversed(_OPTIONS):
        command = option(command)
    return cast(F, command)


@dataclass(frozen=True)
class Recomputed:
    """What computing columns again has shown, ready to be said.

    Attributes:
        facts: As plain data.
        lines: As text.
        require: Raises SpotCheckFailed if columns are not what their tokens make, or could not be computed again
            although that was asked.
    """

    facts: dict[str, Any]
    lines: list[str]
    require: Callable[[], None]


def recomputed(cache: KVCache, engine: Engine, how: Recompute) -> Recomputed | None:
    """Compute columns of a cache again, and compare; None if another model made them.

    Raises:
        UnspokenError: As `unspoken.trust.spotcheck.spot_check` does, or if the agent's card is none.
    """
    if any(each.severity == "fatal" for each in compare(cache.spec, engine.spec)):
        return None
    note("Computing columns again ...")
    from unspoken.trust.spotcheck import report, require_passed, spot_check

    known = how.name is not None or how.card is not None
    prefix = agent(how.name or "", how.card, engine).prefix if known else None
    check = spot_check(cache, engine, columns=how.columns, deep=how.deep, prefix=prefix)
    needed = check.asked if how.deep else check.asked[:1]
    return Recomputed(report(check), told(check), functools.partial(require_passed, check, needed))


def told(check: SpotCheck) -> list[str]:
    """Return a spot check as lines of text: what was compared, how it came out, what may have been missed."""
    from unspoken.trust.spotcheck import SHARES

    lines = []
    if check.errors:
        layer = check.furthest
        lines.append(
            f"Computed again: {check.columns} of {check.held} columns in {_layers(check)}: {_verdict(check)}. The "
            f"largest error is {check.errors[layer].largest:.2g} of a column's length in layer {layer}, "
            f"{check.tolerance[layer].largest:.2g} passes."
        )
        missed = ", ".join(f"{share:.0%} of them: {check.miss_probability(share):.2g}" for share in SHARES)
        lines.append(f"  probability that columns altered beyond that were missed, if there were {missed}")
    if check.not_checked is not None:
        lines.append(f"  not computed again{', deeper layers' if check.errors else ''}: {check.not_checked}")
    return lines


def _verdict(check: SpotCheck) -> str:
    if check.passed:
        return "they are what their tokens make"
    if check.deviating:
        return f"{len(check.deviating)} are NOT what their tokens make"
    return f"as a whole they are NOT what their tokens make (layers {', '.join(map(str, check.shifted))})"


def _layers(check: SpotCheck) -> str:
    first, last = check.layers[0], check.layers[-1]
    return f"layer {first}" if first == last else f"layers {first} to {last}"
