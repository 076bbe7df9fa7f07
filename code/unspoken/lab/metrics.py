"""From samples to figures: `metrics.json`, whose keys are stable (docs/protocol.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspoken.lab.arms import DERANGED, control_in
from unspoken.lab.experiment import POWERED_ITEMS, Experiment
from unspoken.lab.fused_arms import control_of
from unspoken.lab.record import Sample
from unspoken.lab.statistics import ClusterBootstrap, Interval, geometric, holm, mcnemar, spread
from unspoken.lab.tables import family
from unspoken.lab.tasks import about
from unspoken.lab.twins import paired, summary

EQUAL_MARGIN = 0.05
# With fewer sources, even a sample in which no answer differs leaves it possible, at 5 %, that more than the margin's
# share of all sources differ: log 0.05 / log (1 - margin), by the binomial distribution.
SOURCES_TO_BE_EQUAL = math.ceil(math.log(0.05) / math.log(1 - EQUAL_MARGIN))
# The founding claim: 8 to 10 % more accuracy and twice the speed of text.
CLAIMED_GAIN, CLAIMED_SPEED = 0.08, 2.0
STAGES = ("capture", "transform", "move", "inject", "first_token", "answer", "total")


class Table:
    """Samples as rows of items by arm, in one order of items for all arms."""

    def __init__(self, samples: Sequence[Sample], arms: Sequence[str], seed: int) -> None:
        together = [sample for sample in samples if not sample.alone]
        by_arm = {arm: {each.item: each for each in together if each.arm == arm} for arm in arms}
        self.items = sorted({sample.item for sample in together})
        self.rows = {arm: [found[item] for item in self.items] for arm, found in by_arm.items()}
        self.alone = {arm: [each for each in samples if each.alone and each.arm == arm] for arm in arms}
        clusters = {sample.item: sample.source for sample in together}
        self.bootstrap = ClusterBootstrap([clusters[item] for item in self.items], seed)

    def correct(self, arm: str) -> list[bool]:
        """Right or wrong per item; an item with no answer is wrong."""
        return [sample.correct for sample in self.rows[arm]]

    def score(self, arm: str) -> list[float]:
        """What the task is judged by, 0 to 1, per item; an item with no answer has 0."""
        return [sample.judged for sample in self.rows[arm]]

    def difference(self, left: str, right: str, level: float = 0.95) -> Interval:
        """Return the paired difference in score of two arms, with its interval."""
        values = [a - b for a, b in zip(self.score(left), self.score(right), strict=True)]
        return self.bootstrap.interval(values, level)

    def share(self, part: tuple[str, str], whole: tuple[str, str]) -> Interval:
        """Return which share of the difference in score of two arms the difference of two others is.

        The ratio is formed within each resample, since its parts are correlated. It is undefined unless the interval
        of the whole lies above 0: a ratio to what may be nothing has no interval (Fieller 1954, J. R. Stat. Soc. B 16).
        """
        of = self.difference(*whole)
        if not of.low > 0:
            return Interval(*3 * [float("nan")])
        parts, wholes = (self._resampled(*pair) for pair in (part, whole))
        return spread(self.difference(*part).mean / of.mean, parts[wholes > 0] / wholes[wholes > 0])

    def _resampled(self, left: str, right: str) -> NDArray[np.float64]:
        return self.bootstrap.means(self.score(left)) - self.bootstrap.means(self.score(right))


def compute(experiment: Experiment, samples: Sequence[Sample], env: Mapping[str, Any]) -> dict[str, Any]:
    """Return every figure of a run; the same samples give the same figures.

    Where the same words were read in two states of mind, a pair of them is one item: see `unspoken.lab.twins`.
    """
    twins = summary(samples, experiment.arms, experiment.seed)
    table = Table(paired(samples), experiment.arms, experiment.seed)
    subject = subject_of(experiment.arms)
    others = [arm for arm in experiment.arms if arm != subject] if subject else []
    compared = {arm: mcnemar(table.correct(str(subject)), table.correct(arm)) for arm in others}
    task = env.get("task")
    return {
        "experiment": experiment.name,
        "pilot": len(table.items) < POWERED_ITEMS,
        "items": len(table.items),
        "sources": table.bootstrap.clusters,
        "model": env.get("model", experiment.model),
        "engine": experiment.engine,
        "gate": env.get("gate"),
        "task": task,
        "measure": (task or {}).get("measure", "options"),
        **({} if about(experiment.task) == "text" else {"about": about(experiment.task)}),
        "arms": {arm: _arm(table, arm) for arm in experiment.arms},
        "pgr": _pgr(table, experiment.arms),
        **({} if subject in (None, "kv") else {"subject": subject, "control": control_of(str(subject))}),
        f"against_{'kv' if subject in (None, 'kv') else 'subject'}": {
            arm: {**_interval(table.difference(str(subject), arm)), "p": compared[arm], "p_holm": adjusted}
            for arm, adjusted in holm(compared).items()
        },
        **_effects(table, experiment.arms, compared),
        "claims": {
            arm: _claim(table, arm, str(subject)) for arm in experiment.arms if arm.startswith("text") and others
        },
        "alone_agrees": _agreement(samples),
        **({"twins": twins} if twins else {}),
    }


def subject_of(arms: Sequence[str]) -> str | None:
    """Return the arm a run is about: `kv`, or else the first fused arm whose control was run; None if neither was."""
    if "kv" in arms:
        return "kv"
    return next((arm for arm in arms if control_of(arm) in arms), None)


def _effects(table: Table, arms: Sequence[str], compared: Mapping[str, float]) -> dict[str, Any]:
    """Return the differences between arms that were run; a block whose arms were not is absent."""
    known, result = set(arms), dict[str, Any]()
    subject = subject_of(arms) or "kv"
    control = control_of(subject) or "kv-deranged"
    if {subject, control} <= known:
        result["content_gain"] = {**_interval(table.difference(subject, control)), "p": compared[control]}
        result["no_content"] = _equivalence(table, subject, control)
    if {"none", control} <= known:
        result["presence_effect"] = _interval(table.difference(control, "none"))
    gains = {arm: control_in(arm, known) for arm in arms if family(arm) == "content"}
    if gained := {arm: _gain(table, arm, against, known) for arm, against in gains.items() if against}:
        result["gain"] = gained
    if "none" in known:
        # One vector can hardly carry a text, so the claim is held to the same test.
        controls = [arm for arm in arms if arm != "none" and (family(arm) == "control" or arm.startswith("activation"))]
        result["controls_equal_none"] = {arm: _equivalence(table, arm, "none") for arm in controls}
    if {"none", "full-text"} <= known:
        result["reading_gain"] = _interval(table.difference("full-text", "none"))
    if {subject, "full-text"} <= known:
        result[f"{'kv' if subject == 'kv' else 'subject'}_equals_full_text"] = _equivalence(table, subject, "full-text")
    return result


def _gain(table: Table, arm: str, control: str, known: Set[str]) -> dict[str, Any]:
    """Content gain of one cache arm: its score less that of another text's columns, and its share of kv's."""
    of_kv = ("kv", "kv-deranged")
    share = {"share_of_kv_gain": _interval(table.share((arm, control), of_kv))} if set(of_kv) <= known else {}
    own = {"control": control} if control.startswith(DERANGED) else {}
    return {**_interval(table.difference(arm, control)), **share, **own}


def _arm(table: Table, arm: str) -> dict[str, Any]:
    rows, alone = table.rows[arm], table.alone[arm]
    accuracy = table.bootstrap.interval([float(each) for each in table.correct(arm)])
    # A failure counts as a wrong answer; it has no bytes or tokens to count.
    answered = [sample for sample in rows if sample.error is None]
    timed = [sample for sample in alone if sample.error is None]
    kls = [sample.kl for sample in rows if sample.kl is not None]
    golds = [sample.gold_logprob for sample in rows if sample.gold_logprob is not None]
    seconds = {stage: _mean([sample.seconds[stage] for sample in timed]) for stage in STAGES}
    return {
        "n": len(rows),
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "score": _interval(table.bootstrap.interval(table.score(arm))),
        "exact": _mean([float(sample.exact) for sample in rows]),
        "f1": _mean([sample.f1 for sample in rows]),
        "contained": _mean([float(sample.contained) for sample in rows]),
        "gold_logprob": _mean(golds),
        "kl": _mean(kls),
        "bytes": _mean([float(sample.bytes_moved) for sample in answered]),
        "tokens_prefilled": _mean([float(sample.tokens_prefilled) for sample in answered]),
        "tokens_skipped": _mean([float(sample.tokens_skipped) for sample in answered]),
        "recomputed": _mean([sample.recomputed for sample in answered]),
        "seconds": seconds,
        "seconds_total": seconds["total"],
        "seconds_first_token": None if not timed else _mean([_until_first_token(sample) for sample in timed]),
        "timed_items": len(timed),
        "failures": len(rows) - len(answered),
    }


def _pgr(table: Table, arms: Sequence[str]) -> dict[str, Any]:
    """Share of the distance from `none` to `full-text` that an arm covers; undefined where none is shown."""
    if not {"none", "full-text"} <= set(arms):
        return {}
    return {arm: _interval(table.share((arm, "none"), ("full-text", "none"))) for arm in arms}


def _equivalence(table: Table, left: str, right: str) -> dict[str, Any]:
    """Two one-sided tests at 5 %: equal if the 90 % interval of the difference lies within the margin.

    From few sources nothing is called equal: where no answer differs, every resample is 0 and its interval a point.
    """
    inner = table.difference(left, right, level=0.90)
    within = inner.low > -EQUAL_MARGIN and inner.high < EQUAL_MARGIN
    enough = table.bootstrap.clusters >= SOURCES_TO_BE_EQUAL
    return {**_interval(inner), "level": 0.90, "margin": EQUAL_MARGIN, "equal": within and enough}


def _claim(table: Table, text: str, subject: str) -> dict[str, Any]:
    """The owner's claim against one text arm: accuracy difference, and how many times as long text takes end to end."""
    gain = table.difference(subject, text)
    pairs = {sample.item: sample for sample in table.alone[subject] if sample.error is None}
    ratios = [
        each.seconds["total"] / pairs[each.item].seconds["total"]
        for each in table.alone[text]
        if each.error is None and each.item in pairs
    ]
    ratio = _interval(geometric(ratios))
    return {
        "accuracy_difference": _interval(gain),
        "accuracy_holds": gain.low >= CLAIMED_GAIN,
        "time_ratio": ratio,
        "time_holds": ratio["low"] is not None and ratio["low"] >= CLAIMED_SPEED,
        "timed_items": len(ratios),
    }


def _agreement(samples: Sequence[Sample]) -> float | None:
    """Share of the items run alone whose answer is the one they gave in their batch."""
    together = {(sample.item, sample.arm): sample.answer for sample in samples if not sample.alone}
    return _mean([float(each.answer == together[each.item, each.arm]) for each in samples if each.alone])


def _until_first_token(sample: Sample) -> float:
    return sample.seconds["total"] - sample.seconds["answer"]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _interval(interval: Interval) -> dict[str, float | None]:
    found = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {key: value if np.isfinite(value) else None for key, value in found.items()}
