"""Whose cache is this: enrol agents, and ask of a cache which of them, if any, has read or written its words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError
from unspoken.identity.background import Background, enrolled_as
from unspoken.identity.cohort import Cohort, read_tokens
from unspoken.identity.features import content, places, pooled
from unspoken.identity.passages import passages
from unspoken.identity.profile import VERSION, Profile, ProfileInfo, spread_of
from unspoken.identity.projection import deviation
from unspoken.manifest import require_compatible
from unspoken.spec import ModelSpec
from unspoken.trust.leak import leak
from unspoken.trust.spotcheck import require_passed, spot_check

TokenSource = Literal["disclosed", "recovered"]
# Columns that are looked at: the cohort reads them all again, and more of them change little.
MOST_COLUMNS = 256
# Fewer say little about anybody; the study's texts have 40 and more.
FEW_COLUMNS = 16
# Passages an agent reads when it is enrolled from its card.
READINGS = 12
# Texts whose reading by the cohort is remembered: 46 kB each for SmolLM2.
TEXTS_KEPT = 256
# How far a column of layer 0 may be from what its token makes, as a share of its length. Rounding to 4 bits explains
# 0.10, another token's column is off by about its own length (docs/trust.md, "Spot check").
NOT_ITS_TOKEN = 0.5


@dataclass(frozen=True, eq=False)
class Observed:
    """What was seen in a cache.

    Attributes:
        deviation: How its columns differ from the cohort's on the same words.
        columns: How many were looked at.
        tokens: Whether the sender disclosed them, or they were recovered from layer 0.
    """

    deviation: Float[Tensor, "layers parts kv_heads head_dim"]
    columns: int
    tokens: TokenSource


@dataclass(frozen=True)
class Match:
    """How much a cache speaks for an agent: a log-likelihood ratio, natural; above 0 it is more likely the agent's."""

    name: str
    llr: float


@dataclass(frozen=True)
class Identification:
    """Who a cache may be from.

    Attributes:
        matches: All agents it was compared with, the likeliest first.
        threshold: What a match has to reach, so that a stranger is taken for somebody once in a hundred times.
        columns: How many columns were looked at.
        tokens: Whether the sender disclosed them, or they were recovered from layer 0.
    """

    matches: tuple[Match, ...]
    threshold: float
    columns: int
    tokens: TokenSource

    @property
    def name(self) -> str | None:
        """The agent, or None for somebody who is not enrolled."""
        best = self.matches[0]
        return best.name if best.llr >= self.threshold else None


@dataclass(frozen=True)
class Recogniser:
    """Tells agents on one model apart.

    Args:
        engine: The model.
        background: What is known about it, from `unspoken.identity.backgrounds.background_for`.
    """

    engine: Engine = field(repr=False)
    background: Background = field(repr=False)

    @cached_property
    def cohort(self) -> Cohort:
        """Those whose reading is taken away."""
        return Cohort(self.engine, self.background.info.cohort)

    @cached_property
    def digest(self) -> str:
        """The background's digest, which profiles are bound to."""
        return self.background.digest()

    def observe(self, cache: KVCache) -> Observed:
        """Return how a cache's content columns differ from what its words look like whoever reads them.

        Raises:
            IncompatibleCache: If another model made it.
            SpotCheckFailed: If its columns are not those of the tokens beside them.
            UsageError: If it lacks layers or columns, or has no content.
        """
        require_compatible(cache.spec, self.engine.spec)
        columns = content(cache)
        _require_unbroken(columns)
        columns = columns.slice(0, min(columns.columns, MOST_COLUMNS))
        disclosed = columns.manifest.token_ids
        ids = leak(columns, self.engine).token_ids if disclosed is None else disclosed
        _require_tokens(ids, self.engine.spec)
        if disclosed is not None:
            require_passed(spot_check(columns, self.engine, columns=None, layers=(0,), within=NOT_ITS_TOKEN))
        baseline = self._baseline(tuple(ids))
        features = pooled(columns)
        source: TokenSource = "recovered" if disclosed is None else "disclosed"
        return Observed(deviation(features, baseline), columns.columns, source)

    def _baseline(self, ids: tuple[int, ...]) -> Float[Tensor, "layers parts kv_heads head_dim"]:
        """Return the cohort's mean over a text; several agents are often enrolled with the same texts."""
        if ids not in self._read:
            if len(self._read) >= TEXTS_KEPT:
                self._read.clear()
            self._read[ids] = self.cohort.read(ids).mean(dim=0)
        return self._read[ids]

    @cached_property
    def _read(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def enrol(self, name: str, caches: Sequence[KVCache]) -> Profile:
        """Return the profile of an agent.

        Args:
            name: What it is called.
            caches: Of texts that it has read or written, whoever else read them; five and more are a good number.

        Raises:
            IncompatibleCache: If another model made one of them.
            UsageError: If there is none, or one cannot be used (see `observe`).
        """
        if not caches:
            raise UsageError("There is no cache to enrol with.", "Give one at least; five and more are a good number.")
        seen = [self.observe(cache) for cache in caches]
        deviations = torch.stack([each.deviation for each in seen])
        known = self.background.info
        info = ProfileInfo(
            version=VERSION,
            name=name,
            spec=self.engine.spec,
            background=self.digest,
            caches=len(seen),
            columns=sum(each.columns for each in seen),
            layers=tuple(sorted({site.layer for site in known.sites})),
            calibration=known.calibration,
            error_rates=known.error_rates,
        )
        (signature,) = enrolled_as([self.background.signatures(deviations)])
        return Profile(info, signature, deviations.mean(dim=0), spread_of(deviations))

    def enrol_card(self, name: str, card: str, readings: int = READINGS) -> Profile:
        """Return the profile of an agent by its card: it reads the package's own passages.

        Args:
            name: What it is called.
            card: Its system prompt.
            readings: How many passages it reads.
        """
        prefix = self.engine.prefill(self.engine.frame(card).before)
        texts = [self.engine.encode(passage) for passage in passages()[:readings]]
        return self.enrol(name, [read_tokens(self.engine, prefix, ids) for ids in texts])

    def identify(self, cache: KVCache, profiles: Sequence[Profile]) -> Identification:
        """Return who of some agents a cache may be from; with one profile this verifies a claim.

        Raises:
            IncompatibleCache: If another model made the cache or a profile.
            UsageError: If there is no profile, one was enrolled with another background, or the cache cannot be used
                (see `observe`).
        """
        if not profiles:
            raise UsageError("There is no profile to compare the cache with.", "Enrol agents first.")
        for profile in profiles:
            profile.require_for(self.engine.spec, self.digest)
            _require_signature(profile, self.background)
        seen = self.observe(cache)
        tested = self.background.signatures(seen.deviation)[None]
        found = self.background.llrs(tested, torch.stack([profile.signature for profile in profiles]))[0]
        matches = [Match(profile.name, float(llr)) for profile, llr in zip(profiles, found, strict=True)]
        return Identification(
            tuple(sorted(matches, key=lambda match: -match.llr)),
            self.background.info.threshold(len(profiles)),
            seen.columns,
            seen.tokens,
        )


def _require_signature(profile: Profile, background: Background) -> None:
    found, kept = len(profile.signature), background.impostors.shape[-1]
    if found != kept:
        raise UsageError(
            f"The signature of {profile.name} has {found} numbers, those of its background have {kept}.",
            "Enrol the agent anew.",
        )


def _require_unbroken(columns: KVCache) -> None:
    """Refuse a cache of which columns are missing: without all of them, nobody can read the same words."""
    if columns.columns < FEW_COLUMNS:
        raise UsageError(
            f"The cache has {columns.columns} content columns, too few to tell an agent by.",
            f"Give a cache of a longer text, {FEW_COLUMNS} columns at least.",
        )
    whole = torch.arange(columns.columns, dtype=torch.int32)
    for where in places(columns):
        if not torch.equal(where, whole):
            raise UsageError(
                "The cache lacks some columns of its text, and others cannot read the same words for comparison.",
                "Give the whole cache.",
            )


def _require_tokens(token_ids: Sequence[int], spec: ModelSpec) -> None:
    strange = next((token for token in token_ids if not 0 <= token < spec.vocabulary), None)
    if strange is not None:
        raise UsageError(
            f"The cache names the token {strange}, and '{spec.name}' has {spec.vocabulary}.",
            "Do not use it: it is damaged or forged.",
        )
