"""Learn a background from agents of development, and measure on agents left out in turn how well it tells them apart.

Source of the way: cross-validation over agents. Scores of agents that the projection was not learned from are what the
calibration, the thresholds and the error rates are fitted to; the projection in force is learned from all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.identity.background import VERSION, Alarm, Background, BackgroundInfo, enrolled_as, normalised
from unspoken.identity.calibration import Calibration
from unspoken.identity.metrics import Flags, Floats, eer
from unspoken.identity.projection import PROJECTIONS, Learner, Projection, Site, at_sites, default_sites
from unspoken.spec import ModelSpec

FOLDS = 5
# How an agent is told when it is enrolled; every other way is tested against it.
ENROLLED = "card"
# Shares of non-target trials whose scores are noted, as far as there are trials.
SHARES = (0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)

Caches = Float[Tensor, "agents texts layers parts kv_heads head_dim"]


@dataclass(frozen=True)
class Scored:
    """Trials of agents that were left out: normalised scores, and whether they are target trials."""

    scores: Floats
    target: Flags


def learn(
    spec: ModelSpec,
    cohort: Sequence[str],
    ways: Mapping[str, Caches],
    *,
    sites: Sequence[Site] = (),
    learner: str = "whitened",
    watch: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Background:
    """Learn a background.

    Args:
        spec: The model.
        cohort: Cards of those whose reading was taken away from the deviations.
        ways: Deviations by how the agents were told, the same agents in each; `card` among them, with several texts.
        sites: Where signatures are read; by default at even distances.
        learner: The projection's registered name.
        watch: Told how far it is.

    Raises:
        UsageError: If there are too few agents or texts, `card` is missing, there is no such learner, or scipy and
            scikit-learn are.
    """
    _require_enough(ways)
    where = tuple(sites) or default_sites(spec)
    features = {way: at_sites(caches, where) for way, caches in ways.items()}
    learned: Learner = PROJECTIONS.load(learner)
    scored: dict[str, list[Scored]] = {way: [] for way in features}
    folds = list(_folds(len(features[ENROLLED])))
    for at, (others, left_out) in enumerate(folds):
        watch(at, len(folds) + 1, "learning from all but some agents")
        projection = _learned(learned, {way: each[others] for way, each in features.items()})
        for way, found in _scored(projection, features, others, left_out):
            scored[way].append(found)
    watch(len(folds), len(folds) + 1, "learning from all agents")
    together = {way: _together(each) for way, each in scored.items()}
    everything = _together(list(together.values()))
    calibration = Calibration.fit(everything.scores, everything.target)
    info = BackgroundInfo(
        version=VERSION,
        spec=spec,
        learner=learner,
        sites=where,
        cohort=tuple(cohort),
        calibration=calibration,
        alarms=_alarms(calibration.llr(everything.scores[~everything.target])),
        agents=len(features[ENROLLED]),
        caches=sum(each.shape[0] * each.shape[1] for each in features.values()),
        error_rates={way: round(eer(each.scores, each.target), 6) for way, each in together.items()},
    )
    projection = _learned(learned, features)
    watch(len(folds) + 1, len(folds) + 1, "learned")
    return Background(info, projection, enrolled_as(list(projection(features[ENROLLED]))))


def _require_enough(ways: Mapping[str, Caches]) -> None:
    if ENROLLED not in ways or len({len(each) for each in ways.values()}) != 1:
        raise UsageError(
            f"The deviations are of {', '.join(f'{len(each)} agents by {way}' for way, each in ways.items())}.",
            f"Give the same agents in each way, and `{ENROLLED}` among the ways.",
        )
    agents, texts = ways[ENROLLED].shape[:2]
    # With one agent left out at a time, nobody would be compared with anybody else.
    if agents <= FOLDS or texts < 2:
        raise UsageError(
            f"{agents} agents with {texts} texts each are too few to learn from.",
            f"Give at least {FOLDS + 1} agents with 2 texts each; 100 with 6 are a good number.",
        )


def _folds(agents: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the agents to learn from and those left out; every fifth is, so that neighbours are not together."""
    everyone = torch.arange(agents)
    for fold in range(FOLDS):
        out = everyone % FOLDS == fold
        yield everyone[~out], everyone[out]


def _learned(learner: Learner, features: Mapping[str, Float[Tensor, "agents texts sites dims"]]) -> Projection:
    """Return a projection learned from all ways of telling, its matrix as exact as a file keeps it."""
    rows = torch.cat([each.flatten(0, 1) for each in features.values()])
    whose = torch.cat([torch.arange(len(each)).repeat_interleave(each.shape[1]) for each in features.values()])
    projection = learner(rows, whose)
    # Only directions count: the size is chosen so that float16 holds it.
    small = (projection.matrix / projection.matrix.abs().max()).to(torch.float16)
    return replace(projection, matrix=small.to(torch.float32))


def _scored(
    projection: Projection,
    features: Mapping[str, Float[Tensor, "agents texts sites dims"]],
    others: Tensor,
    left_out: Tensor,
) -> Iterator[tuple[str, Scored]]:
    """Yield the trials of agents left out, for each way they were told; nobody is tested with what enrolled it."""
    impostors = enrolled_as(list(projection(features[ENROLLED][others])))
    own = projection(features[ENROLLED][left_out])
    half = own.shape[1] // 2
    for way, caches in features.items():
        first, tests = (own[:, :half], own[:, half:]) if way == ENROLLED else (own, projection(caches[left_out]))
        scores = normalised(tests.flatten(0, 1), enrolled_as(list(first)), impostors)
        whose = np.repeat(np.arange(len(left_out)), tests.shape[1])
        yield way, Scored(scores.ravel(), (whose[:, None] == np.arange(len(left_out))).ravel())


def _together(parts: Sequence[Scored]) -> Scored:
    return Scored(np.concatenate([each.scores for each in parts]), np.concatenate([each.target for each in parts]))


def _alarms(strangers: Floats) -> tuple[Alarm, ...]:
    """Return the scores that so many non-target trials reach; rarer shares than were seen once are left out."""
    ranked = np.sort(strangers)[::-1]
    seen = [share for share in SHARES if share * len(ranked) >= 1] or [1 / len(ranked)]
    return tuple(Alarm(float(ranked[int(share * len(ranked)) - 1]), share) for share in seen)
