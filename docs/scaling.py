"""The generated parts of docs/scale.md: break-even bandwidths of committed runs, and what many agents need."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from runs import ROOT, link, newest

FIGURE = ROOT / "docs" / "figures" / "break-even.svg"
MEGABYTE, GIGABIT = 1e6, 125e6
# Llama 3.1 8B: 2 x 32 layers x 8 heads x 128 numbers; bfloat16, and int4 with its scales.
BFLOAT16, INT4 = 131_072, 40_960
# Of one accelerator with an 8B model: an assumption, said to be one in the text.
ASSUMED_TOKENS_PER_SECOND = 2000.0


class Measured(NamedTuple):
    """One hand-over on record: what moved, what reading takes, and taking in, in seconds."""

    what: str
    tokens: int
    bytes_moved: float
    reading: float
    taking_in: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second at which moving and reading take equally long."""
        from unspoken.plan.scale import break_even

        return break_even(self.bytes_moved, self.reading - self.taking_in)


def break_even_table() -> str:
    """Return the bandwidth above which moving is faster than reading, for each hand-over on record."""
    lines = [
        "| model, engine | tokens | MB moved | reading, s | taking in, s | break-even, MB/s | Mbit/s |",
        f"|---|{'---:|' * 6}",
    ]
    for each in _measured():
        lines.append(
            f"| {each.what} | {each.tokens:,} | {each.bytes_moved / MEGABYTE:.1f} | {each.reading:.2f} "
            f"| {each.taking_in:.3f} | {each.bandwidth / MEGABYTE:.1f} | {8 * each.bandwidth / MEGABYTE:,.0f} |"
        )
    folders = [newest("bench-handoff", engine=engine)[0] for engine in ("transformers", "llamacpp")]
    runs = ", ".join(link(folder) for folder in (*folders, _sequential()[0]))
    return "\n".join([*lines, "", f"Runs: {runs}."])


def scale_table() -> str:
    """Return what 10, 1,000 and 100,000 agents need, by arithmetic and by simulation."""
    from unspoken.plan.scale import Demand, needs, simulate

    lines = [
        "| agents | on the wire | known | hand-overs/s | GB/s | links of 10 Gbit/s | kept for an hour, TB "
        "| wait, s | simulated: mean | 99th percentile | processors to read it instead |",
        f"|---:|---|---:|{'---:|' * 8}",
    ]
    for agents in (10, 1000, 100_000):
        for wire, size, known in (("bfloat16", BFLOAT16, 0.0), ("int4", INT4, 0.0), ("int4", INT4, 0.9)):
            demand = Demand(agents, 6.0, 4000, size, known)
            told = needs(demand, 10 * GIGABIT, ASSUMED_TOKENS_PER_SECOND)
            found = simulate(demand, 10 * GIGABIT, told.links)
            lines.append(
                f"| {agents:,} | {wire} | {100 * known:.0f} % | {demand.per_second:,.3g} "
                f"| {told.bytes_per_second / 1e9:,.3g} | {told.links:,} | {told.bytes_kept / 1e12:,.3g} "
                f"| {told.seconds_waiting:.3f} | {found.seconds_waiting:.3f} | {found.seconds_waiting_p99:.3f} "
                f"| {told.readers:,} |"
            )
    return "\n".join(lines)


def figure() -> str:
    """Draw break-even bandwidth against reading speed: a line for each size of a token, a dot for each record."""
    from matplotlib.ticker import FuncFormatter

    from unspoken.lab.drawing import drawing, style, svg

    shown = (
        ("Llama 3.1 8B, bfloat16", BFLOAT16, "#0072B2"),
        ("Llama 3.1 8B, int4", INT4, "#56B4E9"),
        ("SmolLM2-135M, bfloat16", 23_040, "#D55E00"),
    )
    with style():
        figure, axes = drawing(800, 430, layout="constrained")
        axes.set_xscale("log")
        axes.set_yscale("log")
        speeds = (3.0, 30_000.0)
        for title, size, colour in shown:
            axes.plot(speeds, [size * speed / MEGABYTE for speed in speeds], color=colour, label=title)
        for title, bandwidth in (("100 Mbit/s", 12.5), ("1 Gbit/s", 125), ("10 Gbit/s", 1250)):
            axes.axhline(bandwidth, color="#9A9A9A", linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(title, (speeds[0], bandwidth), (0, 3), textcoords="offset points", fontsize=8.5)
        for at, each in enumerate(_measured()):
            speed = each.tokens / (each.reading - each.taking_in)
            of = each.bandwidth / MEGABYTE
            axes.plot([speed], [of], "o", color="#333333", label=None if at else "measured, two CPU cores")
        axes.set_xlabel("tokens a second that reading the text takes in")
        axes.set_ylabel("MB/s above which moving is faster")
        axes.grid(axis="both")
        axes.legend(loc="lower right")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        return svg(figure, "break-even")


def _measured() -> list[Measured]:
    found = []
    for engine in ("transformers", "llamacpp"):
        _, run = newest("bench-handoff", engine=engine)
        for row in run["rows"]:
            reading, taking_in = row["seconds_first_token_text"], row["seconds_first_token_cache"]
            found.append(Measured(f"{run['model']}, {engine}", row["tokens"], row["bytes"], reading, taking_in))
    _, run = _sequential()
    seconds = run["seconds"]
    what = f"{run['shape']}, llamacpp, random weights"
    found.append(Measured(what, run["tokens"], run["bytes"], seconds["capture"], seconds["inject"]))
    return found


def _sequential() -> tuple[Any, dict[str, Any]]:
    runs = sorted((ROOT / "results" / "bench-sequential").glob("*/metrics.json"))
    found = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in runs]
    return next(run for run in reversed(found) if run[1].get("shape") == "llama-3.1-8b")
