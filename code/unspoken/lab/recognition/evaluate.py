"""A study of recognition from start to finish: read, learn, score, and the metrics and the page that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from unspoken.api import load_gated, open_model
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.identity.background import SUFFIX
from unspoken.identity.identification import UNKNOWN, OpenSet, open_set, rank_one
from unspoken.identity.learning import learn
from unspoken.identity.metrics import cllr, eer, min_cllr, min_dcf
from unspoken.lab import folders, record
from unspoken.lab.recognition.baselines import baselines
from unspoken.lab.recognition.collect import Collector, check
from unspoken.lab.recognition.folder import open_folder
from unspoken.lab.recognition.intervals import bootstrap, enough_errors
from unspoken.lab.recognition.mapping import map_of
from unspoken.lab.recognition.page import render
from unspoken.lab.recognition.people import WAYS
from unspoken.lab.recognition.plan import RecognitionPlan
from unspoken.lab.recognition.scores import Scores, read_scores, write_scores
from unspoken.lab.recognition.trials import Measured, plainly
from unspoken.lab.runner import Watcher
from unspoken.lab.study import Study, environment

# Share of caches that are the claimed agent's where decisions are dear: NIST's usual operating point.
PRIOR = 0.01
KINDS = ("conditions", "nulls", "baselines")
BACKGROUND = f"learned{SUFFIX}"


@dataclass(frozen=True)
class _Others:
    """The study's model in other engines, opened once each."""

    model: str
    held: dict[str, Engine]

    def __call__(self, engine: str) -> Engine:
        if engine not in self.held:
            self.held[engine] = open_model(self.model, engine)
        return self.held[engine]


def run_recognition(plan: RecognitionPlan, results: Path, watch: Watcher) -> Study:
    """Run a study, or go on with its unfinished run, and write everything about it.

    Args:
        plan: The study.
        results: The results folder.
        watch: Told how far it is.

    Raises:
        UnspokenError: If the model cannot be used, a condition cannot be met, another process is at the study, or the
            folder cannot be written.
    """
    check(plan)
    engine, gate = load_gated(plan.model, plan.engine, plan.loading)
    task = {"name": "recognition", "version": "1"}
    with open_folder(results, plan, environment(engine, gate, task)) as folder:
        collector = Collector(plan, engine, folder, _Others(plan.model, {}))
        collector.run(collector.jobs(), watch)
        cohort = tuple(persona.card for persona in collector.people.cohort)
        background = learn(engine.spec, cohort, collector.developed(), watch=watch)
        background.write(folder / BACKGROUND)
        measured = Measured(collector, background)
        scores, facts = score(measured, watch)
        write_scores(folder, scores, facts)
        return close_recognition(folder, plan, watch)


def score(measured: Measured, watch: Watcher) -> tuple[dict[str, Scores], dict[str, Any]]:
    """Return the scores of everything in a study by `kind/name`, and what else its metrics need."""
    plan, info = measured.collector.plan, measured.background.info
    scores: dict[str, Scores] = {}
    for condition, found in measured.conditions():
        watch(len(scores), len(plan.conditions), f"scoring {condition}")
        scores[f"conditions/{condition}"] = found
    spliced = measured.spliced()
    scores["conditions/spliced"] = spliced.scores
    scores |= {f"nulls/{name}": found for name, found in measured.nulls()}
    scores |= {f"baselines/{name}/{condition}": found for name, condition, found in baselines(measured)}
    facts = {
        "names": list(measured.names),
        "spliced": spliced.shares(),
        "enrolment": _by_enrolment(measured),
        "layers": _by_layer(measured, "card"),
        **({"layers_reworded": _by_layer(measured, "reworded")} if "reworded" in plan.conditions else {}),
        "map": map_of(measured),
        "background": {
            "error_rates": info.error_rates,
            "agents": info.agents,
            "caches": info.caches,
            "learner": info.learner,
            "sites": len(info.sites),
            "digest": measured.background.digest(),
        },
        "threshold": info.threshold(len(measured.names) // 2),
        "revisions": measured.collector.revisions(),
    }
    return scores, facts


def close_recognition(folder: Path, plan: RecognitionPlan, watch: Watcher) -> Study:
    """Compute metrics and page of a run from its folder alone and write them.

    Raises:
        UsageError: If the run has no scores yet, or they are damaged.
        StorageError: If they cannot be written.
    """
    scores, facts = read_scores(folder)
    env = record.RunFolder(folder).env()
    metrics = compute(plan, scores, facts, env, watch)
    page = render(plan, metrics, {name: found for name, found in scores.items() if name.startswith("conditions/")}, env)
    with folders.writable(folder):
        folders.write(folder / "report.html", page.encode())
        folders.write_json(folder / "metrics.json", metrics)
    return Study(folder, metrics)


def open_recognition(folder: Path) -> RecognitionPlan | None:
    """Return the study of a run folder; None if it is another kind of run's."""
    config = folder / "config.yaml"
    if not config.exists() or b"development_readings" not in config.read_bytes():
        return None
    try:
        return msgspec.yaml.decode(config.read_bytes(), type=RecognitionPlan)
    except msgspec.DecodeError as error:
        raise UsageError(f"The run in {folder} is damaged: {error}.", "Restore its files, or run it again.") from error


def compute(
    plan: RecognitionPlan,
    scores: Mapping[str, Scores],
    facts: Mapping[str, Any],
    env: Mapping[str, Any],
    watch: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Return the metrics of a study: error rates with intervals, identification, and what is drawn."""
    measured: dict[str, Any] = {kind: {} for kind in KINDS}
    for at, (key, found) in enumerate(scores.items()):
        watch(at, len(scores), f"intervals of {key}")
        kind, *names = key.split("/")
        place = measured[kind]
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = rates(found, plan)
    known = {
        each.removeprefix("conditions/"): found for each, found in scores.items() if each.startswith("conditions/")
    }
    half = np.arange(len(facts["names"])) % 2 == 0
    return {
        "experiment": plan.name,
        "pilot": plan.pilot,
        "engine": plan.engine,
        **{key: env[key] for key in ("model", "gate")},
        **{key: getattr(plan, key) for key in ("agents", "development", "cohort", "enrolment_texts", "test_texts")},
        **measured,
        "open_set": {
            name: _open(found, half, facts["threshold"]) for name, found in known.items() if name != "spliced"
        },
        **{key: facts[key] for key in facts if key not in {"names", "threshold"}},
    }


def rates(found: Scores, plan: RecognitionPlan) -> dict[str, Any]:
    """Return the error rates of one condition; Cllr only says something of log-likelihood ratios."""
    trials = found.trials()
    interval = bootstrap(trials, eer, plan.draws, plan.seed)
    given = (trials.scores, trials.target)
    return {
        "eer": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "min_dcf": min_dcf(PRIOR)(*given),
        "cllr": cllr(*given),
        "min_cllr": min_cllr(*given),
        "rank_one": None if np.isnan(found.scores).any() else rank_one(found.scores, found.tested),
        "targets": trials.targets,
        "nontargets": trials.nontargets,
        "enough_errors": enough_errors(interval.mean, min(trials.targets, trials.nontargets)),
    }


def _open(found: Scores, half: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return how half of the agents are named while the other half are strangers, by a fitted and a fixed threshold."""
    column = np.where(half, np.cumsum(half) - 1, UNKNOWN)
    scores, truth = found.scores[:, half], column[found.tested]
    return _told(open_set(scores, truth)) | {"fixed": _told(open_set(scores, truth, threshold=threshold))}


def _told(found: OpenSet) -> dict[str, Any]:
    return {
        "dir": found.dir,
        "false_alarm": found.false_alarm,
        "threshold": found.threshold,
        "known": found.known,
        "unknown": found.unknown,
    }


def _by_enrolment(measured: Measured) -> dict[str, dict[str, float]]:
    """Return the EER by how many texts agents were enrolled with."""
    ways = [each for each in measured.collector.plan.conditions if each in WAYS]
    counts = range(1, measured.collector.plan.enrolment_texts + 1)
    return {str(count): {way: _eer(measured.by_enrolment(way, count)) for way in ways} for count in counts}


def _by_layer(measured: Measured, condition: str) -> dict[str, list[float]]:
    """Return the EER of each layer alone, by plain cosine: where in the model agents can be told apart."""
    first, tests = measured.enrolment, measured.features(condition, "deviation")
    return {
        part: [_eer(plainly(first[:, :, layer, at], tests[:, :, layer, at])) for layer in range(first.shape[2])]
        for at, part in enumerate(("keys", "values"))
    }


def _eer(found: Scores) -> float:
    trials = found.trials()
    return eer(trials.scores, trials.target)
