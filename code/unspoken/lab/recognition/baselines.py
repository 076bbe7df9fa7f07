"""What else could tell agents apart, on the same trials: their words, their tokens, plain averages, a published way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.identity.features import PARTS
from unspoken.identity.libraries import learning_libraries
from unspoken.identity.metrics import Floats
from unspoken.identity.projection import at_sites, unit
from unspoken.lab.recognition.people import WAYS
from unspoken.lab.recognition.scores import Scores
from unspoken.lab.recognition.trials import DIGITS, Measured, laid_out, plainly

# Lengths of pieces of letters: the usual choice for telling authors apart.
LETTERS = (2, 4)
# The lowest of the frequencies over layers.
BINS = 2


def baselines(measured: Measured) -> Iterator[tuple[str, str, Scores]]:
    """Yield the name of a baseline, the condition and the scores, on the trials that the signatures are judged on."""
    plan = measured.collector.plan
    for condition in (each for each in plan.conditions if each in WAYS):
        yield "stylometry", condition, _same_texts(measured)
        for name, seen in FEATURES.items():
            first, tests = (seen(measured, group) for group in ("enrolment", condition))
            yield name, condition, plainly(first, tests)
    if "self-written" in plan.conditions:
        yield "stylometry", "self-written", _own_texts(measured)


def stylometry(enrolment: Sequence[Sequence[str]], tests: Sequence[Sequence[str]]) -> Scores:
    """Return how alike the letters of texts are: cosines of TF-IDF of pieces of letters, by scikit-learn.

    Args:
        enrolment: For each agent, the texts it is known by.
        tests: For each agent, the texts it is tested with.
    """
    with learning_libraries():
        from sklearn.feature_extraction.text import TfidfVectorizer

    model = TfidfVectorizer(analyzer="char_wb", ngram_range=LETTERS, sublinear_tf=True)
    known = model.fit_transform([" ".join(texts) for texts in enrolment])
    scores: Floats = (model.transform([text for texts in tests for text in texts]) @ known.T).toarray()
    return laid_out(scores.round(DIGITS), len(tests), len(tests[0]))


def fourier(keys: Float[Tensor, "*many layers kv_heads head_dim"]) -> Float[Tensor, "*many numbers"]:
    """Return the published fingerprint of a cache from its mean keys, RoPE applied.

    Source: engram-kv (see docs/references.md): the spectrum over layers of the mean key, of which the magnitudes at the
    two lowest frequencies, each with length 1, stand side by side.
    """
    bins = torch.fft.rfft(keys.flatten(-2), dim=-2).abs()[..., :BINS, :]
    return unit(bins).flatten(-2)


def _layer_zero(measured: Measured, group: str) -> Tensor:
    return measured.features(group, "raw")[:, :, 0]


def _mean_keys(measured: Measured, group: str) -> Tensor:
    return measured.features(group, "raw")[:, :, 1:, PARTS.index("keys")]


def _fourier(measured: Measured, group: str) -> Tensor:
    return fourier(measured.features(group, "turned"))


def _plain(measured: Measured, group: str) -> Tensor:
    """Return the deviations that signatures are made of, before anything learned is done to them."""
    found = at_sites(measured.features(group, "deviation"), measured.background.info.sites)
    return found / measured.background.projection.scale[:, None]


FEATURES: dict[str, Callable[[Measured, str], Tensor]] = {
    "layer-0-bag": _layer_zero,
    "mean-keys": _mean_keys,
    "fourier": _fourier,
    "plain": _plain,
}


def _same_texts(measured: Measured) -> Scores:
    """Return stylometry where all agents read the same: every profile is the same text."""
    engine, texts, agents = measured.collector.engine, measured.collector.texts, len(measured.names)
    first, tests = ([engine.decode(ids) for ids in each] for each in (texts.enrolment, texts.test))
    return stylometry([first] * agents, [tests] * agents)


def _own_texts(measured: Measured) -> Scores:
    """Return stylometry on what agents wrote themselves."""
    decode, split = measured.collector.engine.decode, measured.collector.plan.enrolment_texts
    rows = measured.features("self-written", "tokens").numpy()
    written = [[decode(ids[ids >= 0].tolist()) for ids in agent] for agent in rows]
    return stylometry([texts[:split] for texts in written], [texts[split:] for texts in written])
