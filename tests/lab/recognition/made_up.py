"""A made-up study of recognition: normal scores that tell agents apart more or less well, and the metrics of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from unspoken.identity.identification import rank_one
from unspoken.identity.metrics import cllr, eer, min_cllr, min_dcf
from unspoken.lab.recognition.intervals import enough_errors
from unspoken.lab.recognition.scores import Scores

# How far the agent's own scores lie above others', in standard deviations.
GAINS = {
    "card": 30.0, "reworded": 5.2, "unshared": 3.4, "memory": 3.0, "dialogue": 2.6, "brief": 4.2, "mimicry": 1.6,
    "self-written": 2.9, "kv+float32": 5.4, "kv+int8": 5.2, "kv+int4": 4.0, "need@0.3": 3.2, "two-hops": 5.0,
    "llamacpp": 5.1, "spliced": 2.1,
}  # fmt: skip
NULLS = ("layer-0", "twins", "permuted")
BASELINES = {"stylometry": 0.0, "layer-0-bag": 0.0, "mean-keys": 0.6, "fourier": 0.9, "plain": 0.85}
WAYS = ("card", "reworded", "unshared", "memory", "dialogue")
NAMES = (
    "Nils Ida Mara Otto Vera Lyra Jonas Emil Rosa Wim Ada Kurt Lene Bela Iris Hugo Nora Finn Tilda Max Olga Sven "
    "Paula Rolf Anke Yuri Dora Karl Milo Greta"
).split()
ENV: dict[str, Any] = {
    "run": "20260102T030405Z-abcdef01",
    "starts": [{"utc": "2026-01-02T03:04:05Z", "command": "unspoken identity evaluate study.yaml"}],
    "machine": {"cpu": "made up", "cores": 2, "memory_bytes": 8_000_000_000, "gpu": None},
    "packages": {"unspoken": "0.1.0"},
    "revision": {"commit": "c0ffee", "dirty_diff": ""},
    "model": {"name": "made-up", "weights": "feed"},
    "engine": {"name": "fake"},
    "gate": {"passed": True, "bound": 1e-4, "checks": {"moved": 1e-5}},
    "task": {"name": "recognition", "version": "1"},
}
BACKGROUND = {
    "error_rates": {"card": 0.0, "reworded": 0.012}, "agents": 100, "caches": 3600, "learner": "whitened", "sites": 20,
    "digest": "facade",
}  # fmt: skip


def scored(gain: float, seed: int, agents: int = 8, texts: int = 6) -> Scores:
    """Normal scores, those of the own agent higher by so much."""
    tested, text = np.repeat(np.arange(agents), texts), np.tile(np.arange(texts), agents)
    own = tested[:, None] == np.arange(agents)
    noise = np.random.default_rng(seed).normal(size=own.shape)
    return Scores(2 * (noise + gain * own - gain / 2), tested, text)


def rates(found: Scores) -> dict[str, Any]:
    """A condition's entry in the metrics, with an interval of two points to either side."""
    trials = found.trials()
    given = (trials.scores, trials.target)
    rate = eer(*given)
    return {
        "eer": rate,
        "low": max(0.0, rate - 0.02),
        "high": rate + 0.02 if rate else 0.0,
        "min_dcf": min_dcf(0.01)(*given),
        "cllr": cllr(*given),
        "min_cllr": min_cllr(*given),
        "rank_one": rank_one(found.scores, found.tested),
        "targets": trials.targets,
        "nontargets": trials.nontargets,
        "enough_errors": enough_errors(rate, min(trials.targets, trials.nontargets)),
    }


def scores(agents: int = 8, texts: int = 6) -> dict[str, Scores]:
    """The scores of every condition, as a run names them."""
    return {
        f"conditions/{name}": scored(gain, at, agents, texts) for at, (name, gain) in enumerate(GAINS.items(), start=1)
    }


def metrics(agents: int = 8, texts: int = 6) -> dict[str, Any]:
    """The metrics of the study, everything optional in them."""
    conditions = {name.rpartition("/")[2]: rates(found) for name, found in scores(agents, texts).items()}
    others = {
        name: {way: rates(scored(share * min(GAINS[way], 5), 100 + at, agents, texts)) for way in WAYS}
        for at, (name, share) in enumerate(BASELINES.items())
    }
    chance = {"eer": 0.49, "low": 0.45, "high": 0.54, "enough_errors": True}
    few = {"targets": agents * texts, "nontargets": agents * (agents - 1) * texts}
    threshold = {"dir": 0.97, "false_alarm": 0.01, "threshold": 3.25}
    return {
        "experiment": "identity",
        "pilot": False,
        "model": ENV["model"],
        "engine": ENV["engine"],
        "gate": ENV["gate"],
        "agents": agents,
        "development": 100,
        "cohort": 8,
        "enrolment_texts": 5,
        "test_texts": texts,
        "conditions": conditions,
        "nulls": {name: rates(scored(0.0, 50, agents, texts)) | chance | few for name in NULLS},
        "baselines": others,
        "open_set": {
            name: threshold | {"known": 300, "unknown": 300, "fixed": threshold | {"false_alarm": 0.02}}
            for name in conditions
            if name != "spliced"
        },
        "enrolment": {
            str(count): {way: (0.004 + 0.02 * at) * (1 + 2 / count) for at, way in enumerate(WAYS)}
            for count in range(1, 6)
        },
        "layers": _by_layer(0.02),
        "layers_reworded": _by_layer(0.06),
        "spliced": {"between_two": 0.931, "among_all": 0.804, "windows": 1200, "columns": 16},
        "map": _map(agents),
        "background": BACKGROUND,
    }


def _by_layer(best: float) -> dict[str, list[float]]:
    layers = np.arange(30)
    rates = {"values": best + (0.5 - best) * np.exp(-layers / 3), "keys": 2 * best + 0.48 * np.exp(-layers / 5)}
    return {part: [0.5, *of[1:].tolist()] for part, of in rates.items()}


def _map(agents: int) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    middles = rng.uniform(-60, 60, (agents, 2))
    agent = np.tile(np.repeat(np.arange(agents), 6), 2)
    points = middles[agent] + rng.normal(scale=2.5, size=(agent.size, 2))
    return {
        "points": points.round(3).tolist(),
        "agent": agent.tolist(),
        "names": list(NAMES[:agents]),
        "method": "t-SNE",
        "condition": ["card"] * (agent.size // 2) + ["reworded"] * (agent.size // 2),
    }
