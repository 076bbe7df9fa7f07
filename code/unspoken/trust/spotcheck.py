"""Does a cache hold what its tokens make? Columns computed again, and compared.

A seal tells who vouches for a cache, not that it is honest: its columns may be those of another text than the token ids
beside them. Where the token ids are disclosed a receiver with the same model can look. Layer 0 depends on the tokens
alone, and can be computed again for a few random columns. Deeper layers depend on all that stood before, and are
computed again for all columns together, which only works if those before are there, or the receiver knows them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb, isfinite
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache, KVLayer
from unspoken.engines.protocol import Engine
from unspoken.errors import IncompatibleCache, SpotCheckFailed, UsageError
from unspoken.manifest import require_compatible
from unspoken.transforms.rope import RemoveRope
from unspoken.trust.recompute import first_layer, whole_text
from unspoken.trust.tolerance import Error, own_cells, tolerance

FIRST = (0, 1, 2)
"""Layers computed again unless others are asked for."""
COLUMNS = 48
"""Of so many random columns at least one is altered, 99 times in 100, where a tenth of all are: 0.9**48 is 0.006."""
SHARES = (0.01, 0.1)
"""Shares of altered columns whose chance of being missed is told."""
# Steps that leave a text's columns all there, computed in one go; after any other, some may lack what stood before.
_WHOLE = frozenset({"prefill", "cast", "pack", "rope.move", "rope.remove", "rope.apply"})


@dataclass(frozen=True)
class SpotCheck:
    """What computing some columns again has shown.

    Attributes:
        columns: How many columns were compared.
        held: How many there are.
        asked: The layers that were to be compared.
        errors: For each layer that was compared, the largest error of a column, and the median of all
            (`unspoken.trust.tolerance`).
        tolerance: For each of these layers, the errors that rounding explains.
        deviating: The columns that are further off than that in some layer.
        not_checked: Why something was not computed again, or None.
    """

    columns: int
    held: int
    asked: tuple[int, ...]
    errors: Mapping[int, Error]
    tolerance: Mapping[int, Error]
    deviating: tuple[int, ...] = field(repr=False)
    not_checked: str | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that were compared."""
        return tuple(self.errors)

    @property
    def shifted(self) -> tuple[int, ...]:
        """The layers whose columns are further off than rounding explains when taken together."""
        # Written so that an error that is no number does not pass.
        return tuple(at for at, error in self.errors.items() if not error.median <= self.tolerance[at].median)

    @property
    def passed(self) -> bool:
        """Whether columns were compared, and they are what their tokens make."""
        return bool(self.errors) and not self.deviating and not self.shifted

    @property
    def furthest(self) -> int:
        """The layer whose largest error is the most times what passes there."""
        return max(self.errors, key=lambda at: self.errors[at].largest / max(self.tolerance[at].largest, 1e-9))

    def miss_probability(self, share: float) -> float:
        """Return how probable it is that none of some altered columns was among those compared.

        Of n columns m are altered and k compared, drawn without putting back: C(n - m, k) / C(n, k), the hypergeometric
        distribution at 0. It is about alterations beyond the tolerance, in the layers that were compared.

        Args:
            share: Of the columns that are altered, above 0 and up to 1; at least one column is.

        Raises:
            UsageError: If the share is none.
        """
        if not 0 < share <= 1:
            raise UsageError(f"A share of {share:g} of the columns is none.", "Give one above 0 and up to 1.")
        altered = min(self.held, max(1, round(share * self.held)))
        return comb(self.held - altered, self.columns) / comb(self.held, self.columns)


def spot_check(
    cache: KVCache,
    engine: Engine,
    *,
    columns: int | None = COLUMNS,
    layers: Sequence[int] = FIRST,
    deep: bool = False,
    seed: int | None = None,
    prefix: KVCache | None = None,
    within: float | None = None,
) -> SpotCheck:
    """Compute columns of a cache again from its token ids, and compare.

    Args:
        cache: Whose token ids are disclosed; what it says about them is not believed but compared.
        engine: The same model.
        columns: How many random columns of layer 0 are computed again; None for all. Where deeper layers can be
            computed again all columns are, since each of them needs those before it.
        layers: Which layers are compared; those that the cache does not hold are left out.
        deep: Whether those between them and a random layer further up are compared as well.
        seed: Of the choice; by default nobody can foresee it. Only for tests.
        prefix: What stood before the cache's columns, if the receiver knows it: `Agent(...).prefix` of the sender.
        within: The largest error that passes; by default what was measured for the cache's wire form and both engines.

    Raises:
        IncompatibleCache: If another model made the cache or the prefix, or it names tokens that no model has.
        ContextOverflow: If it has more columns than the model has positions.
        UsageError: If no column is asked for, or no layer that is there.
    """
    require_compatible(cache.spec, engine.spec)
    _require_sensible(columns, layers)
    draw = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311 - nothing secret, in tests
    asked = _asked(cache, layers, deep, draw)
    hidden = _hidden(cache)
    if hidden is not None:
        return SpotCheck(0, cache.columns, asked, {}, {}, (), hidden)
    ids, at = _token_ids(cache), list(range(cache.columns))
    lacking = _lacking(cache, engine, prefix) if asked[-1] > 0 else None
    if asked[-1] > 0 and lacking is None:
        made = whole_text(engine, ids, prefix, asked[-1] + 1).layers
    elif asked[0] == 0:
        at = sorted(draw.sample(at, min(columns or len(at), len(at))))
        made = (first_layer(engine, [ids[each] for each in at]),)
    else:
        return SpotCheck(0, cache.columns, asked, {}, {}, (), lacking)
    own = {layer.index: layer for layer in made if layer.index in asked}
    if within is None:
        allowed = {index: tolerance(cache, engine, index, len(at)) for index in own}
    else:
        allowed = dict.fromkeys(own, Error(within, within))
    errors, deviating = _compared(cache, at, own, allowed)
    return SpotCheck(len(at), cache.columns, asked, errors, allowed, deviating, lacking)


def require_passed(check: SpotCheck, needed: Sequence[int] = (0,)) -> None:
    """Refuse what a check has shown to be false, or could not look at.

    Args:
        check: What `spot_check` found.
        needed: Layers that must have been compared; `check.asked` insists on all that were asked for.

    Raises:
        SpotCheckFailed: If a column deviates, or a needed layer was not compared.
    """
    if check.errors and not check.passed:
        raise _failed(check)
    missing = [layer for layer in needed if layer not in check.errors]
    if missing:
        raise SpotCheckFailed(
            f"Layers of the cache, from layer {missing[0]} on, could not be computed again: "
            f"{check.not_checked or 'nobody asked for them'}.",
            "Ask the sender for the token ids or for the whole cache, or give what stood before its columns.",
        )


def _failed(check: SpotCheck) -> SpotCheckFailed:
    if check.deviating:
        layer, which, what = check.furthest, "largest", f"{len(check.deviating)} of {check.columns} columns are"
    else:
        layer, which, what = check.shifted[0], "median", "The columns as a whole are"
    found, passes = getattr(check.errors[layer], which), getattr(check.tolerance[layer], which)
    return SpotCheckFailed(
        f"{what} not what the model makes of the tokens beside them: in layer {layer} the {which} error "
        f"is {found:.2g} of a column's length, rounding explains {passes:.2g}.",
        "Do not use the cache; ask the sender how it was made, or read the text yourself.",
    )


def report(check: SpotCheck, shares: Sequence[float] = SHARES) -> dict[str, Any]:
    """Return a check as plain data, with how probable it is that altered shares of the columns were missed.

    An error that is no number is None.
    """
    return {
        "passed": check.passed,
        "columns": check.columns,
        "held": check.held,
        "asked": list(check.asked),
        "errors": _plain(check.errors),
        "tolerance": _plain(check.tolerance),
        "deviating": list(check.deviating),
        "shifted": list(check.shifted),
        "not_checked": check.not_checked,
        "miss_probability": {f"{share:g}": check.miss_probability(share) for share in shares},
    }


def _plain(errors: Mapping[int, Error]) -> dict[str, dict[str, float | None]]:
    return {
        str(layer): {name: value if isfinite(value) else None for name, value in error._asdict().items()}
        for layer, error in errors.items()
    }


def _require_sensible(columns: int | None, layers: Sequence[int]) -> None:
    if not layers or min(layers) < 0 or (columns is not None and columns < 1):
        raise UsageError(
            f"{columns} columns of the layers {list(layers)} cannot be computed again.",
            "Ask for one column or more, and for layers from 0 on.",
        )


def _asked(cache: KVCache, layers: Sequence[int], deep: bool, draw: random.Random) -> tuple[int, ...]:
    """Return the layers to compare, in order; those of the model that the cache does not hold are left out.

    Raises:
        UsageError: If it holds none of them.
    """
    held = sorted(layer.index for layer in cache.layers)
    further = [index for index in held if index > max(layers)]
    last = draw.choice(further) if deep and further else -1
    asked = tuple(index for index in held if index in layers or max(layers) < index <= last)
    if not asked:
        raise UsageError(f"The cache holds none of the layers {list(layers)}.", f"It holds {held[0]} to {held[-1]}.")
    return asked


def _hidden(cache: KVCache) -> str | None:
    """Return why nothing can be computed again, or None."""
    ids = cache.manifest.token_ids
    if ids is None:
        return "its token ids are not disclosed"
    if not ids or any(layer.columns != len(ids) for layer in cache.layers):
        return "it does not hold one column for each token in every layer"
    return None


def _token_ids(cache: KVCache) -> tuple[int, ...]:
    ids = cache.manifest.token_ids or ()
    unknown = [token for token in ids if not 0 <= token < cache.spec.vocabulary]
    if unknown:
        raise IncompatibleCache(
            f"The cache names the token {unknown[0]}; '{cache.spec.name}' has {cache.spec.vocabulary}.",
            "Do not use it; ask the sender how it was made.",
        )
    return ids


def _lacking(cache: KVCache, engine: Engine, prefix: KVCache | None) -> str | None:
    """Return why layers above the first cannot be computed again, or None."""
    positions, ops = cache.positions.long(), {step.op for step in cache.manifest.lineage}
    start = int(positions[0])
    if own_cells(engine):
        return f"{engine.name} computes on columns of 8 or 4 bits here, which lose too much to compare deeper layers"
    if bool((positions.diff() != 1).any()) or any(not each.positions.equal(cache.positions) for each in cache.layers):
        return "columns between its columns are missing, or in another order"
    if prefix is not None:
        return None if start == prefix.next_position else "its columns do not follow the prefix given"
    if not ops <= _WHOLE or (start != 0 and "rope.move" not in ops):
        return "what stood before its columns, and is in them above layer 0, did not travel along"
    return None


def _compared(
    cache: KVCache, at: Sequence[int], own: Mapping[int, KVLayer], allowed: Mapping[int, Error]
) -> tuple[dict[int, Error], tuple[int, ...]]:
    """Return each layer's errors, and the columns that are further off than passes in some layer.

    Args:
        cache: Whose columns they are.
        at: Which of its columns.
        own: For each layer to compare, the same columns computed again, position-free.
        allowed: For each of these layers, the errors that pass.
    """
    chosen, errors, over = torch.tensor(at), {}, torch.zeros(len(at), dtype=torch.bool)
    held = [layer for layer in cache.layers if layer.index in own]
    for layer in RemoveRope()(KVCache.build(held, cache.spec, rope=cache.manifest.rope)).layers:
        found = column_errors(layer.keys[:, chosen], layer.values[:, chosen], own[layer.index])
        errors[layer.index] = Error(float(found.max()), float(found.median()))
        over |= ~(found <= allowed[layer.index].largest)  # An error that is no number is none that passes.
    return errors, tuple(chosen[over].tolist())


def column_errors(
    keys: Float[Tensor, "kv_heads columns head_dim"], values: Float[Tensor, "kv_heads columns head_dim"], own: KVLayer
) -> Float[Tensor, " columns"]:
    """Return how far each column is from the one computed again: the larger error of its keys and its values.

    Args:
        keys: Position-free.
        values: Of the same columns.
        own: The same, computed again.
    """
    return torch.maximum(_error(keys, own.keys), _error(values, own.values))


def _error(found: Tensor, right: Tensor) -> Float[Tensor, " columns"]:
    length = right.float().norm(dim=(0, 2))
    off: Tensor = (found.float() - right.float()).norm(dim=(0, 2))
    return off / torch.maximum(length, length.median())
