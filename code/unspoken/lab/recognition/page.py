"""The page of a study of recognition: one HTML file that needs nothing else, rebuilt from the run folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from unspoken.lab.columns import Column
from unspoken.lab.recognition import figures
from unspoken.lab.recognition.intervals import ENOUGH_ERRORS
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.lab.recognition.scores import Scores
from unspoken.lab.recognition.tables import (
    FAMILIES,
    FEW,
    NAME,
    Grid,
    Line,
    answer,
    findings,
    kind_of,
    meaning,
    plain,
    rate_cell,
    results,
    share,
)
from unspoken.lab.report import page
from unspoken.lab.tables import MISSING, Cell, model_name, size

CONDITIONS = "conditions/"
# Drawn in one colour with the marks that the figures give these families.
DOTS = {family: figures.FAMILY[family] for family in FAMILIES}
REFERENCE = "card"
OPEN_SET = (
    NAME,
    Column("dir", "found, %", "caches of enrolled agents that are named rightly, threshold fitted to these tests"),
    Column("false_alarm", "strangers taken, %", "caches of agents not enrolled that are taken for somebody"),
    Column("threshold", "threshold", "log-likelihood ratio, fitted to 1 % of these strangers"),
    Column("fixed_dir", "found, % (fixed)", "the same at the threshold that came with the background"),
    Column("fixed_false_alarm", "strangers taken, % (fixed)", "the same at the threshold that came with it"),
    Column("fixed_threshold", "threshold (fixed)", "log-likelihood ratio, chosen on agents of development"),
    Column("known", "enrolled", "caches of enrolled agents"),
    Column("unknown", "strangers", "caches of agents that are not enrolled"),
)


def render(
    plan: RecognitionPlan, metrics: Mapping[str, Any], scores: Mapping[str, Scores], env: Mapping[str, Any]
) -> str:
    """Return a study's page as one HTML file; the same study gives the same bytes.

    What the metrics lack, the page leaves out.

    Args:
        plan: The study, as it was run.
        metrics: What its `metrics.json` holds.
        scores: Of its conditions, by `conditions/NAME` or by name alone.
        env: What was recorded about machine and start.
    """
    from markupsafe import Markup

    found = {name.removeprefix(CONDITIONS): of for name, of in scores.items()}
    # The figures are this package's own; everything else is escaped.
    drawn = {name: Markup(figure) for name, figure in _figures(metrics, found).items()}  # noqa: S704
    return page(
        "recognition.html.j2",
        plan=plan,
        metrics=metrics,
        model=model_name(metrics.get("model")),
        answer=answer(metrics),
        findings=findings(metrics),
        figures=drawn,
        reference=_shown(found),
        results=results(metrics),
        baselines=baselines(metrics),
        open_set=open_set(metrics),
        enrolment=enrolment(metrics),
        layers=layers(metrics),
        families=FAMILIES,
        dots=DOTS,
        meanings={name: meaning(name) for name in metrics.get("baselines", {})},
        few=FEW,
        enough=ENOUGH_ERRORS,
        any_few=any(FEW in line.cells["eer"].text for line in results(metrics).lines),
        record=record(plan, metrics, env),
    )


def baselines(metrics: Mapping[str, Any]) -> Grid:
    """Return error rates of other ways to look at the same trials, one column each, beside this study's own."""
    others = metrics.get("baselines", {})
    names = [name for name in metrics.get("conditions", {}) if any(name in of for of in others.values())]
    columns = (
        NAME,
        Column("ours", "this signature", "EER, % [95 % interval]"),
        *(Column(f"by {each}", each, f"{meaning(each)}: EER, % [95 % interval]") for each in others),
    )
    lines = []
    for name in names:
        found = {"ours": metrics["conditions"][name]} | {f"by {each}": of.get(name) for each, of in others.items()}
        cells = {key: rate_cell(of) if of else Cell(MISSING) for key, of in found.items()}
        lines.append(Line(kind_of(name), {"name": Cell(name), **cells}))
    return Grid(columns, tuple(lines))


def open_set(metrics: Mapping[str, Any]) -> Grid:
    """Return how often enrolled agents are named and strangers turned away."""
    lines = []
    for name, of in metrics.get("open_set", {}).items():
        cells = {"name": Cell(name)} | {key: plain(of.get(key), 0) for key in ("known", "unknown")}
        for prefix, at in (("", of), ("fixed_", of.get("fixed") or {})):
            cells |= {f"{prefix}{key}": share(at.get(key)) for key in ("dir", "false_alarm")}
            cells[f"{prefix}threshold"] = plain(at.get("threshold"), 2)
        lines.append(Line(kind_of(name), cells))
    return Grid(OPEN_SET, tuple(lines))


def enrolment(metrics: Mapping[str, Any]) -> Grid:
    """Return error rates by the number of texts that agents were enrolled with."""
    found = sorted(metrics.get("enrolment", {}).items(), key=lambda each: int(each[0]))
    names = dict.fromkeys(name for _, of in found for name in of)
    columns = (Column("name", "texts", "an agent was enrolled with"), *(Column(f"of {name}", name, "EER, %")
               for name in names))  # fmt: skip
    lines = (
        Line(None, {"name": Cell(texts, int(texts))} | {f"of {name}": share(of.get(name)) for name in names})
        for texts, of in found
    )
    return Grid(columns, tuple(lines))


def layers(metrics: Mapping[str, Any]) -> Grid:
    """Return error rates of single layers, one column for each part of the cache and condition."""
    found = {f"{part}, {name}": rates for name, of in _layers(metrics).items() for part, rates in of.items()}
    columns = (Column("name", "layer", "counted from 0"), *(Column(f"of {each}", each, "EER, %") for each in found))
    deepest = max(map(len, found.values()), default=0)
    lines = (
        Line(None, {"name": Cell(str(at), at)}
             | {f"of {each}": share(rates[at] if at < len(rates) else None) for each, rates in found.items()})
        for at in range(deepest)
    )  # fmt: skip
    return Grid(columns, tuple(lines))


def record(plan: RecognitionPlan, metrics: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the run record as titled groups of names and values, some of them groups themselves."""
    starts = [f"{each['utc']}  {each['command']}" for each in env.get("starts", [])]
    revision, machine = env.get("revision") or {}, dict(env.get("machine") or {})
    memory = machine.pop("memory_bytes", None)
    said = {key: env.get(key) or metrics.get(key) for key in ("packages", "engine", "model", "gate")}
    told = ("run", "starts", "revision", "machine", *said)
    return {
        "run": {"id": env.get("run"), "started": starts},
        "study": msgspec.to_builtins(plan),
        "code": {"commit": revision.get("commit"), "changed since": revision.get("dirty_diff") or "nothing"},
        **{key: value if isinstance(value, Mapping) else {"all": value} for key, value in said.items()},
        "machine": machine | {"memory": None if memory is None else size(memory)},
        "other": {key: value for key, value in env.items() if key not in told},
    }


def _figures(metrics: Mapping[str, Any], found: Mapping[str, Scores]) -> dict[str, str]:
    """Return the figures that can be drawn."""
    conditions, shown = metrics.get("conditions", {}), _shown(found)
    curves = {
        "det_told": {name: found[name] for name in conditions if name in found and kind_of(name) == "told"},
        "det_handed": {name: found[name] for name in conditions if name in found and kind_of(name) == "handed"},
    }
    if curves["det_handed"] and REFERENCE in found:
        curves["det_handed"] = {REFERENCE: found[REFERENCE], **curves["det_handed"]}
    drawn = {name: figures.det(of, name) for name, of in curves.items() if of}
    if conditions or metrics.get("nulls"):
        drawn["eer"] = figures.eer_bars(metrics)
    if baselines(metrics).lines:
        drawn["baselines"] = figures.against_baselines(metrics)
    if shown:
        drawn["histogram"] = figures.score_histogram(found[shown])
    if metrics.get("enrolment"):
        drawn["enrolment"] = figures.by_enrolment(metrics["enrolment"])
    if _layers(metrics):
        drawn["layers"] = figures.by_layer(_layers(metrics))
    if metrics.get("map"):
        drawn["map"] = figures.map_of_agents(metrics["map"])
    return drawn


def _layers(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, list[float]]]:
    by_name = {REFERENCE: metrics.get("layers"), "reworded": metrics.get("layers_reworded")}
    return {name: of for name, of in by_name.items() if of}


def _shown(found: Mapping[str, Scores]) -> str | None:
    """Return the condition whose scores are drawn: other words where there are any, since that is what counts."""
    return next((name for name in ("reworded", REFERENCE) if name in found), None)
