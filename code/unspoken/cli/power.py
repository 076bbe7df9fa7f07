"""`unspoken power`: how many questions an experiment takes."""

from __future__ import annotations

import click

from unspoken.cli.common import as_json, print_json

SHARE = click.FloatRange(0, 100, min_open=True)


@click.command()
@click.option("--points", type=SHARE, help="Difference in accuracy to be seen, percentage points.")
@click.option("--items", type=click.IntRange(2, 20_000), help="Questions there are.")
@click.option("--differing", type=SHARE, default=20.0, show_default=True,
              help="Questions on which exactly one of the two arms is right, %.")  # fmt: skip
@click.option("--power", "wanted", type=click.FloatRange(1, 99.9), default=80.0, show_default=True,
              help="Chance to see the difference, %.")  # fmt: skip
@click.option("--level", type=click.FloatRange(0.01, 50), default=5.0, show_default=True,
              help="Chance to see one that is not there, %.")  # fmt: skip
@click.option("--per-source", type=click.FloatRange(1), default=1.0, show_default=True,
              help="Questions about one source.")  # fmt: skip
@click.option("--correlation", type=click.FloatRange(0, 1), default=0.0, show_default=True,
              help="Of the differences within a source.")  # fmt: skip
@as_json
def power(points: float | None, items: int | None, differing: float, wanted: float, level: float, per_source: float,
          correlation: float, as_json: bool) -> None:  # fmt: skip
    """Tell how many questions see a difference of --points, or what --items of them can see.

    With both, tell the chance that it is seen. For two arms that answer the same questions, by the exact McNemar test.
    """
    from unspoken.errors import UsageError
    from unspoken.lab.power import for_clusters, items_needed, smallest_difference
    from unspoken.lab.power import power as chance

    share, aim, at = differing / 100, wanted / 100, level / 100
    spread = for_clusters(1000, per_source, correlation) / 1000
    found: dict[str, float | int | None] = {"differing": share, "level": at, "design_effect": spread}
    if points is None and items is None:
        raise UsageError("Neither --points nor --items is given.", "Give one: unspoken power --points 5.")
    if points is not None and items is None:
        needed = for_clusters(items_needed(points / 100, share, aim, at), per_source, correlation)
        found |= {"points": points, "power": aim, "items": needed}
        told = f"{needed} questions see a difference of {points:g} points with {wanted:g} % power."
    elif points is not None and items is not None:
        seen = chance(max(2, int(items / spread)), points / 100, share, at)
        found |= {"points": points, "items": items, "power": seen}
        told = f"{items} questions see a difference of {points:g} points with {100 * seen:.1f} % power."
    else:
        least = smallest_difference(max(2, int((items or 2) / spread)), share, aim, at)
        found |= {"items": items, "power": aim, "points": None if least is None else 100 * least}
        told = (
            f"{items} questions are too few for any difference that is possible here."
            if least is None
            else f"{items} questions see differences of {100 * least:.1f} points and more with {wanted:g} % power."
        )
    if as_json:
        print_json(found)
        return
    click.echo(told)
