"""Fit a translator in closed form, and choose the layers it listens to by what attention makes of the result.

The sums of a regression are kept for each of the receiver's layers over a window of the sender's layers, so that memory
grows neither with columns nor with the sender's depth. Which layers of the window are used is chosen on texts that were
held out, by the error of attention's output and not by R2: R2 goes against what a map is good for, attention's output
goes with it (KV Ridge, arXiv 2608.03893, section on R2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from msgspec.structs import replace
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers.layermap import depth_normalised
from unspoken.fusers.normal import Moments, NormalEquations
from unspoken.fusers.pair import Pair, Side
from unspoken.fusers.rows import as_layers
from unspoken.spec import RopeSpec
from unspoken.transforms.rope import angles, rotation, turn


@dataclass(frozen=True)
class LayerMap:
    """A linear map to one of the receiver's layers, and what both sides are standardised by.

    Attributes:
        sources: The sender's layers it takes, in the order of its inputs.
        inputs_mean: Mean of each input.
        inputs_scale: Standard deviation of each.
        targets_mean: Mean of each target.
        targets_scale: Standard deviation of each.
        matrix: From standardised inputs to standardised targets.
    """

    sources: tuple[int, ...]
    inputs_mean: Float[Tensor, " inputs"]
    inputs_scale: Float[Tensor, " inputs"]
    targets_mean: Float[Tensor, " targets"]
    targets_scale: Float[Tensor, " targets"]
    matrix: Float[Tensor, "targets inputs"]

    def __call__(self, inputs: Float[Tensor, "columns inputs"]) -> Float[Tensor, "columns targets"]:
        """Return the targets of some columns."""
        made = ((inputs - self.inputs_mean) / self.inputs_scale) @ self.matrix.T
        return made * self.targets_scale + self.targets_mean


@dataclass(frozen=True)
class HeldOut:
    """A text that no map was fitted to, as both models read it, and what was then asked about it.

    Attributes:
        rows: The sender's columns, position-free, aligned to the receiver's tokens.
        positions: Where the receiver's columns of the text stand.
        queries: The receiver's queries of some later tokens, turned to their positions, layer by layer.
        keys: Its own keys of the text, turned to their positions, layer by layer.
        values: Its own values.
    """

    rows: Float[Tensor, "columns sender"]
    positions: Int[Tensor, " columns"]
    queries: tuple[Float[Tensor, "heads probes head_dim"], ...]
    keys: tuple[Float[Tensor, "kv_heads columns head_dim"], ...]
    values: tuple[Float[Tensor, "kv_heads columns head_dim"], ...]


class Windows:
    """The sums behind all maps of a pair, one regression for each of the receiver's layers.

    Args:
        pair: The two models.
        window: How many of the sender's layers, nearest by relative depth, each map may choose from.

    Raises:
        UsageError: If the sender has fewer layers.
    """

    def __init__(self, pair: Pair, window: int) -> None:
        self._pair = pair
        self._width = pair.sender.width // pair.sender.layers
        made = pair.receiver.width // pair.receiver.layers
        self.candidates = depth_normalised(pair.receiver.layers, pair.sender.layers, window)
        self._seen = [NormalEquations(self._width * window, made) for _ in self.candidates]

    def add(self, sent: Float[Tensor, "columns sender"], own: Float[Tensor, "columns receiver"]) -> None:
        """Take in columns of one text as both models have read it; they need not be kept."""
        targets = own.reshape(len(own), len(self._seen), -1).unbind(1)
        for layers, seen, target in zip(self.candidates, self._seen, targets, strict=True):
            seen.add(self.inputs(sent, layers), target)

    def inputs(self, sent: Float[Tensor, "columns sender"], layers: Sequence[int]) -> Float[Tensor, "columns inputs"]:
        """Return some layers of the sender's columns, in the order asked for."""
        return sent.reshape(len(sent), -1, self._width)[:, list(layers)].flatten(1)

    def fitted(
        self, held: Sequence[HeldOut], rope: RopeSpec, sources: int, ridge: float = 0.03
    ) -> tuple[LayerMap, ...]:
        """Return the map of each of the receiver's layers, from the layers that serve attention best.

        Layers are chosen one by one: the best alone, then the one that helps it most, and so on.

        Args:
            held: What they are judged by; not needed where a map takes its whole window.
            rope: How the receiver turns its keys.
            sources: Of one map.
            ridge: Penalty, for inputs of variance one.

        Raises:
            UsageError: If there are fewer layers to choose from, or nothing to judge them by, or no columns were seen.
        """
        window = len(self.candidates[0])
        if not 1 <= sources <= window or (sources < window and not held):
            raise UsageError(
                f"{sources} layers cannot be chosen of {window} by {len(held)} texts held out.",
                "Choose 1 or more of the window, and hold a text out.",
            )
        return tuple(self._fitted(layer, held, rope, sources, ridge) for layer in range(len(self.candidates)))

    def _fitted(self, layer: int, held: Sequence[HeldOut], rope: RopeSpec, sources: int, ridge: float) -> LayerMap:
        moments, candidates = self._seen[layer].standardised(), self.candidates[layer]
        if sources == len(candidates):
            return self._solved(moments, layer, candidates, ridge)

        def error(chosen: tuple[int, ...]) -> tuple[float, LayerMap]:
            made = self._solved(moments, layer, chosen, ridge)
            columns = [made(self.inputs(each.rows, chosen)) for each in held]
            return attention_error(columns, held, layer, self._pair.receiver, rope), made

        best: LayerMap | None = None
        while best is None or len(best.sources) < sources:
            known = () if best is None else best.sources
            tried = [error((*known, each)) for each in candidates if each not in known]
            best = min(tried, key=lambda each: each[0])[1]
        return best

    def _solved(self, moments: Moments, layer: int, chosen: tuple[int, ...], ridge: float) -> LayerMap:
        at = [self.candidates[layer].index(each) for each in chosen]
        taken = torch.arange(len(moments.gram)).reshape(-1, self._width)[at].flatten()
        matrix = solved(moments.gram[taken][:, taken], moments.cross[taken], ridge)
        inputs = moments.inputs_mean[taken], moments.inputs_scale[taken]
        return LayerMap(chosen, *inputs, moments.targets_mean, moments.targets_scale, matrix)


def solved(
    gram: Float[Tensor, "inputs inputs"], cross: Float[Tensor, "inputs targets"], ridge: float
) -> Float[Tensor, "targets inputs"]:
    """Return the matrix of the ridge regression that some correlations belong to.

    Source: Hoerl and Kennard, Technometrics 12 (1970). In float64: a small penalty leaves the correlations of
    neighbouring layers close to singular.

    Raises:
        UsageError: If the penalty does not make up for inputs that depend on each other.
    """
    penalised = gram.to(torch.float64) + ridge * torch.eye(len(gram), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(penalised)
    if int(failed):
        raise UsageError(
            f"A penalty of {ridge:g} is too small for these columns.", "Raise the ridge, or give more text."
        )
    return torch.cholesky_solve(cross.to(torch.float64), factor).T.to(torch.float32).contiguous()


def attended(
    queries: Float[Tensor, "heads probes head_dim"],
    keys: Float[Tensor, "kv_heads columns head_dim"],
    values: Float[Tensor, "kv_heads columns head_dim"],
) -> Float[Tensor, "heads probes head_dim"]:
    """Return what attention to some columns, and to them alone, comes to: softmax(q k' / sqrt(head_dim)) v.

    Neighbouring query heads share a key-value head (grouped queries, arXiv 2305.13245).

    Args:
        queries: Of tokens behind all the columns, turned to their positions.
        keys: Turned likewise.
        values: One for each key.
    """
    grouped = queries.reshape(len(keys), -1, *queries.shape[1:])
    weights = (grouped @ keys[:, None].transpose(2, 3) * keys.shape[-1] ** -0.5).softmax(dim=-1)
    heard: Tensor = weights @ values[:, None]
    return heard.flatten(0, 1)


def attention_error(
    made: Sequence[Float[Tensor, "_ width"]], held: Sequence[HeldOut], layer: int, side: Side, rope: RopeSpec
) -> float:
    """Return how far attention's output on made columns of one layer is from that on the true ones, squared.

    ||A(q, K, V) - A(q, K', V')||^2 / ||A(q, K, V)||^2, both summed over all texts.

    Args:
        made: The layer's columns for each text, keys and then values, position-free.
        held: The texts.
        layer: Which of the receiver's layers it is.
        side: The receiver.
        rope: How it turns its keys: made ones are turned to where the true ones stand.
    """
    one = replace(side, layers=1)
    apart = size = 0.0
    for columns, each in zip(made, held, strict=True):
        keys, values = as_layers(columns, one)[0]
        true = attended(each.queries[layer], each.keys[layer], each.values[layer])
        heard = attended(each.queries[layer], turn(keys, rotation(angles(each.positions, rope)), rope), values)
        apart += float((heard - true).square().sum())
        size += float(true.square().sum())
    return apart / max(size, torch.finfo(torch.float32).tiny)
