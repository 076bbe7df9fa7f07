"""Twins: the same words read in two states of mind, and how often a receiver tells the states apart.

Answers to one question always lean the same way in a small model, whatever it was handed: it says yes to everything,
say. What counts is whether the right answer is more probable in its own state than in the other: for each pair that is
a choice between two, in which leaning cancels out and chance is one in two.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from unspoken.lab.record import Sample
from unspoken.lab.statistics import ClusterBootstrap, Interval, spread
from unspoken.lab.tasks.protocol import STATES, cluster_of, state_of, words_of

# Below it, in nats, two readings of the same words differ by rounding alone.
TIE = 1e-3


def paired(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples with each pair of twins as one item, right where the states were told apart.

    A tie counts half, and is right or wrong by a coin that falls the same way in every arm and run. Samples that are
    no twins, or were run alone for their time, stay as they are.
    """
    held: dict[tuple[str, str], dict[str, Sample]] = {}
    found = []
    for sample in samples:
        if sample.alone or not state_of(sample.source):
            found.append(sample)
        else:
            held.setdefault((words_of(sample.source), sample.arm), {})[state_of(sample.source)] = sample
    return found + [
        _pair(list(twins.values())) if len(twins) > 1 else next(iter(twins.values())) for twins in held.values()
    ]


def summary(samples: Sequence[Sample], arms: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what is known of twins besides how often they were told apart; empty where there are none.

    Per arm: the share of single answers that were right, and, where all questions have the same two answers, the area
    under the ROC curve of the odds between them, each with its interval; and how many pairs were ties.
    """
    single = [sample for sample in samples if not sample.alone and state_of(sample.source)]
    if not single:
        return {}
    golds = sorted({sample.gold for sample in single})
    result: dict[str, Any] = {"questions": len({sample.item for sample in single}), "arms": {}}
    for arm in arms:
        mine = sorted((sample for sample in single if sample.arm == arm), key=lambda sample: sample.item)
        bootstrap = ClusterBootstrap([cluster_of(sample.source) for sample in mine], seed)
        told = {"single": msgspec.to_builtins(bootstrap.interval([float(each.correct) for each in mine]))}
        if len(golds) == len(STATES):
            told["auroc"] = msgspec.to_builtins(_auroc(mine, golds[0], bootstrap))
        result["arms"][arm] = told | {"ties": sum(sample.score == 0.5 for sample in paired(mine))}
    return result


def _pair(twins: Sequence[Sample]) -> Sample:
    first = twins[0]
    errors = [twin.error for twin in twins if twin.error is not None]
    margin = sum(twin.margin or 0.0 for twin in twins)
    tie = abs(margin) < TIE and not errors
    coin = bool(zlib.crc32(words_of(first.source).encode()) & 1)
    right = not errors and (coin if tie else margin > 0)
    return msgspec.structs.replace(
        first,
        item=words_of(first.source),
        source=cluster_of(first.source),
        correct=right,
        score=0.5 if tie else float(right),
        error=errors[0] if errors else None,
        contained=all(twin.contained for twin in twins),
        exact=all(twin.exact for twin in twins),
        **{name: _mean(twins, name) for name in ("f1", "gold_logprob", "kl", "recomputed")},
        **{name: round(_mean(twins, name) or 0) for name in ("bytes_moved", "tokens_prefilled", "tokens_skipped")},
    )


def _mean(twins: Sequence[Sample], name: str) -> float | None:
    values = [value for twin in twins if (value := getattr(twin, name)) is not None]
    return sum(values) / len(values) if values else None


def _auroc(samples: Sequence[Sample], positive: str, bootstrap: ClusterBootstrap) -> Interval:
    """Return the area under the ROC curve (Hanley and McNeil 1982): how often the odds order two answers rightly."""
    is_positive = np.array([sample.gold == positive for sample in samples])
    odds = np.array([(sample.margin or 0.0) * (1 if sample.gold == positive else -1) for sample in samples])
    above = odds[is_positive][:, None] - odds[~is_positive][None, :]
    wins = (above > TIE) + 0.5 * (np.abs(above) <= TIE)
    weights = bootstrap.item_weights()
    left, right = weights[:, is_positive], weights[:, ~is_positive]
    with np.errstate(invalid="ignore"):
        drawn = np.einsum("dp,pn,dn->d", left, wins, right, optimize=True) / (left.sum(1) * right.sum(1))
    return spread(float(wins.mean()), drawn)
