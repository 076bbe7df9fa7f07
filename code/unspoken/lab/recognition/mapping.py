"""A map of a study's agents: every cache a point, so that caches that look alike lie together."""

from __future__ import annotations

from typing import Any

import torch

from unspoken.identity.libraries import learning_libraries
from unspoken.lab.recognition.trials import Measured

# Two ways of telling the same agent: as it was enrolled, and in other words.
SHOWN = ("card", "reworded")
TEXTS = 6
NEIGHBOURS = 12


def map_of(measured: Measured) -> dict[str, Any]:
    """Return signatures of some caches of each agent in two dimensions, by t-SNE.

    Source: van der Maaten and Hinton 2008, "Visualizing data using t-SNE", by scikit-learn. Distances between groups
    mean little; whether a point lies among its own does.
    """
    with learning_libraries():
        from sklearn.manifold import TSNE

    shown = [each for each in SHOWN if each in measured.collector.plan.conditions]
    signatures, agents, ways = [], [], []
    for way in shown:
        found = measured.background.signatures(measured.features(way, "deviation")[:, :TEXTS])
        signatures.append(found.flatten(0, 1))
        agents += [agent for agent in range(found.shape[0]) for _ in range(found.shape[1])]
        ways += [way] * found.shape[0] * found.shape[1]
    points = torch.cat(signatures).numpy()
    seed = measured.collector.plan.seed % 2**32
    model = TSNE(perplexity=min(NEIGHBOURS, len(points) - 1), metric="cosine", init="random", random_state=seed)
    return {
        "points": [[round(float(x), 3), round(float(y), 3)] for x, y in model.fit_transform(points)],
        "agent": agents,
        "names": list(measured.names),
        "condition": ways,
        "method": "t-SNE",
    }
