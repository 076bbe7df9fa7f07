"""The report of a run: one HTML file that needs nothing else, rebuilt from the run folder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec

from unspoken.lab import figures
from unspoken.lab.claims_figure import claims_figure
from unspoken.lab.columns import SWEEP, full
from unspoken.lab.curves_figure import curves_figure, has_curves
from unspoken.lab.drilldown import by_item, packed
from unspoken.lab.experiment import POWERED_ITEMS, Experiment
from unspoken.lab.founding import founding, has_claims
from unspoken.lab.frontier import frontier, has_frontier
from unspoken.lab.fused_arms import control_of
from unspoken.lab.metrics import SOURCES_TO_BE_EQUAL, subject_of
from unspoken.lab.record import Sample
from unspoken.lab.statistics import DRAWS
from unspoken.lab.sweep import Sweep
from unspoken.lab.tables import MISSING, ordered, rows, size
from unspoken.lab.verdict import claims, judge

EXAMPLES = 3
LONG_MESSAGE = 160
DESCRIBED = ("packages", "engine", "machine", "task", "model", "gate")


class Said(msgspec.Struct, frozen=True):
    """What one arm answered to one question."""

    arm: str
    answer: str
    correct: bool
    error: str | None
    message: str | None


class Example(msgspec.Struct, frozen=True):
    """One question with what every arm answered."""

    item: str
    question: str
    gold: str
    said: tuple[Said, ...]


def render(
    experiment: Experiment, samples: Sequence[Sample], metrics: Mapping[str, Any], env: Mapping[str, Any]
) -> str:
    """Return a run's report as one HTML file; the same run gives the same bytes.

    Args:
        experiment: As it was run.
        samples: Of the run, in any order.
        metrics: What `compute` made of them.
        env: What was recorded about machine and start.
    """
    from markupsafe import Markup

    # The figures are this package's own; everything else is escaped.
    drawn = {
        "accuracy": Markup(figures.accuracy(metrics)),  # noqa: S704
        "bytes": Markup(figures.bytes_against_accuracy(metrics)),  # noqa: S704
        "seconds": Markup(figures.seconds_by_stage(metrics) or ""),  # noqa: S704
        "frontier": Markup(frontier({experiment.task: metrics}) if has_frontier(metrics) else ""),  # noqa: S704
    }
    return page(
        "report.html.j2",
        experiment=experiment,
        metrics=metrics,
        verdict=judge(metrics),
        figures=drawn,
        columns=full(metrics),
        subject=metrics.get("subject", "kv"),
        control=metrics.get("control", "kv-deranged"),
        rows=rows(metrics),
        claims=claims(metrics),
        examples=examples(samples, tuple(metrics["arms"])),
        # Nothing in it can end the element it stands in.
        answers_packed=Markup(packed(samples, ordered(tuple(metrics["arms"])))) if samples else "",  # noqa: S704
        long_message=LONG_MESSAGE,
        record=record(experiment, metrics, env),
        powered=POWERED_ITEMS,
        sources_to_be_equal=SOURCES_TO_BE_EQUAL,
        draws=DRAWS,
    )


def render_sweep(sweep: Sweep, metrics: Mapping[str, Any], env: Mapping[str, Any]) -> str:
    """Return the page of a sweep, with all cells side by side and links to their reports.

    Args:
        sweep: As it was run.
        metrics: What its `metrics.json` holds.
        env: What was recorded about machine and starts.
    """
    from markupsafe import Markup

    cells = metrics["cells"]
    drawn = {key: of for key, of in cells.items() if has_frontier(of)}
    starts = [f"{each['utc']}  {each['command']}" for each in env.get("starts", [])]
    told = [(cell, cells[cell.key], judge(cells[cell.key]), rows(cells[cell.key])) for cell in sweep.cells]
    every = [row for *_, lines in told for row in lines]
    return page(
        "sweep.html.j2",
        sweep=sweep,
        claims=[(cell.key, of["pilot"], each) for cell, of, *_ in told for each in claims(of)],
        figure=Markup(frontier(drawn) if drawn else ""),  # noqa: S704
        founding=founding(cells),
        claims_figure=Markup(claims_figure(cells) if has_claims(cells) else ""),  # noqa: S704
        curves=Markup(curves_figure(cells) if has_curves(cells) else ""),  # noqa: S704
        # What no arm of any cell has, such as a share of kv's gain without kv, has no column.
        columns=[each for each in SWEEP if any(row.cells[each.key].text != MISSING for row in every)],
        cells=told,
        record=(("run", tuple(_flat({"id": env.get("run"), "started": starts}))),),
    )


def page(template: str, **values: Any) -> str:
    """Return one of this package's templates, filled in; what is not marked as safe is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def read(name: str) -> str:
        return files("unspoken.lab").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(read)
    )
    return environment.get_template(template).render(**values)


def examples(samples: Sequence[Sample], arms: Sequence[str], count: int = EXAMPLES) -> tuple[Example, ...]:
    """Return the first questions, from different sources, that the right cache answers and a wrong one does not.

    Where there are too few, the first other questions fill up: of sources not yet shown, if there are any.
    """
    found = dict(by_item(samples))
    order = list(found)
    subject = subject_of(arms) or "kv"
    control = control_of(subject) or "kv-deranged"
    telling = [item for item in order if _telling(found[item], subject, control)]
    chosen: list[str] = []
    for candidates, anew in ((telling, True), (order, True), (order, False)):
        for item in candidates:
            shown = {_source(found[each]) for each in chosen}
            if len(chosen) < count and item not in chosen and not (anew and _source(found[item]) in shown):
                chosen.append(item)
    return tuple(_example(found[item], arms) for item in chosen)


def record(
    experiment: Experiment, metrics: Mapping[str, Any], env: Mapping[str, Any]
) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Return the run record as titled groups of names and values."""
    starts = [f"{each['utc']}  {each['command']}" for each in env.get("starts", [])]
    revision = env.get("revision", {})
    described = {key: dict(env.get(key) or {}) for key in DESCRIBED}
    memory = described["machine"].pop("memory_bytes", None)
    groups: dict[str, Any] = {
        "run": {"id": env.get("run"), "started": starts or None},
        "experiment": msgspec.to_builtins(experiment),
        "code": {"commit": revision.get("commit"), "changed since": revision.get("dirty_diff") or "nothing"},
        **described,
        "machine": described["machine"] | {"memory": None if memory is None else size(memory)},
        "other": {key: value for key, value in env.items() if key not in (*DESCRIBED, "run", "starts", "revision")}
        | {"share of answers alone as in the batch": metrics.get("alone_agrees")},
    }
    return tuple((title, tuple(_flat(values))) for title, values in groups.items())


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value under its dotted name."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        yield name, "; ".join(map(str, values)) or "none"
    elif values is None or values == {}:
        yield name or "all", "not recorded"
    else:
        yield name, str(values)


def _telling(of: Mapping[str, Sample], subject: str, control: str) -> bool:
    return {subject, control} <= set(of) and of[subject].correct and not of[control].correct


def _source(of: Mapping[str, Sample]) -> str:
    return min(sample.source for sample in of.values())


def _example(of: Mapping[str, Sample], arms: Sequence[str]) -> Example:
    answered = [of[arm] for arm in ordered(arms) if arm in of]
    first = answered[0]
    said = (Said(each.arm, each.answer, each.correct, each.error, each.message) for each in answered)
    return Example(first.item, first.question, first.gold, tuple(said))
