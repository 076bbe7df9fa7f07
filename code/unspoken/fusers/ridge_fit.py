"""Fit a translator in closed form, and choose the layers it listens to by what attention makes of the result.

Sums are kept for each of the receiver's layers over a window of the sender's: memory grows with neither the number of
columns nor the square of a model's depth. Which layers of the window are used is chosen on texts that were held out, by
the error of attention's output and not by R2: R2 goes against what a map is good for, attention's output goes with it
(KV Ridge, arXiv 2608.03893, section on R2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

FACTORS = (1.0, 1000.0)
"""Penalties that are tried for each further layer, as multiples of the first one's."""

Penalties = Sequence[tuple[int, float]]
"""Layers of the sender, and how each one's weights are penalised."""


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
    """The sums behind all maps of a pair: of each sender layer with what stands beside it in a window, and no others.

    Two layers that several windows share are correlated once.

    Args:
        pair: The two models.
        window: How many of the sender's layers, nearest by relative depth, each map may choose from.

    Raises:
        UsageError: If the sender has fewer layers.
    """

    def __init__(self, pair: Pair, window: int) -> None:
        self._pair = pair
        self._width, self._made = pair.sender.width // pair.sender.layers, pair.receiver.width // pair.receiver.layers
        self.candidates = depth_normalised(pair.receiver.layers, pair.sender.layers, window)
        self._heard = {
            source: [layer for layer, each in enumerate(self.candidates) if source in each]
            for source in sorted({source for each in self.candidates for source in each})
        }
        # What two layers have in common is kept with the lower one.
        self._beside = {
            source: sorted({other for layer in heard for other in self.candidates[layer] if other > source})
            for source, heard in self._heard.items()
        }
        self._seen = {
            source: NormalEquations(
                self._width, self._width * len(self._beside[source]) + self._made * len(self._heard[source])
            )
            for source in self._heard
        }

    def add(self, sent: Float[Tensor, "columns sender"], own: Float[Tensor, "columns receiver"]) -> None:
        """Take in columns of one text as both models have read it; they need not be kept."""
        layers = sent.reshape(len(sent), self._pair.sender.layers, self._width)
        targets = own.reshape(len(own), self._pair.receiver.layers, self._made)
        for source, seen in self._seen.items():
            told = layers[:, self._beside[source]].flatten(1), targets[:, self._heard[source]].flatten(1)
            seen.add(layers[:, source], torch.cat(told, dim=1))

    def inputs(self, sent: Float[Tensor, "columns sender"], layers: Sequence[int]) -> Float[Tensor, "columns inputs"]:
        """Return some layers of the sender's columns, in the order asked for."""
        return sent.reshape(len(sent), self._pair.sender.layers, self._width)[:, list(layers)].flatten(1)

    def moments(self) -> tuple[Moments, ...]:
        """Return for each of the receiver's layers the correlations of its window, in the order of `candidates`.

        Raises:
            UsageError: If fewer than two columns were seen.
        """
        known = {source: seen.standardised() for source, seen in self._seen.items()}
        return tuple(self._moments(known, layer) for layer in range(len(self.candidates)))

    def fitted(
        self, held: Sequence[HeldOut], rope: RopeSpec, sources: int, ridge: float = 0.03
    ) -> tuple[LayerMap, ...]:
        """Return the map of each of the receiver's layers, from the layers that serve attention best.

        Layers are chosen one by one: the best alone, then the one that helps it most, and so on. Layers next to each
        other say nearly the same, and what little a further one adds may be drowned by what its many weights learn by
        heart. So each further one is tried with the same penalty and with one that holds it back (`FACTORS`).

        Args:
            held: What they are judged by. With none, maps take their whole window, all of it at one penalty.
            rope: How the receiver turns its keys.
            sources: Of one map.
            ridge: Penalty of the first layer, for inputs of variance one.

        Raises:
            UsageError: If there are fewer layers to choose from, or nothing to judge them by, or no columns were seen.
        """
        window = len(self.candidates[0])
        if not 1 <= sources <= window or (sources < window and not held):
            raise UsageError(
                f"{sources} layers cannot be chosen of {window} by {len(held)} texts held out.",
                "Choose 1 or more of the window, and hold a text out.",
            )
        if not held:
            return tuple(
                self._solved(moments, candidates, [(each, ridge) for each in candidates])
                for candidates, moments in zip(self.candidates, self.moments(), strict=True)
            )
        return tuple(
            self._chosen(layer, moments, held, rope, sources, ridge) for layer, moments in enumerate(self.moments())
        )

    def _moments(self, known: Mapping[int, Moments], layer: int) -> Moments:
        candidates = self.candidates[layer]

        def own(source: int) -> slice:
            start = self._width * len(self._beside[source]) + self._made * self._heard[source].index(layer)
            return slice(start, start + self._made)

        def block(row: int, column: int) -> Tensor:
            if row == column:
                return known[row].gram
            low, high = sorted((row, column))
            start = self._width * self._beside[low].index(high)
            common = known[low].cross[:, start : start + self._width]
            return common if row == low else common.T

        any_one = candidates[0]
        return Moments(
            torch.cat([known[source].inputs_mean for source in candidates]),
            torch.cat([known[source].inputs_scale for source in candidates]),
            known[any_one].targets_mean[own(any_one)],
            known[any_one].targets_scale[own(any_one)],
            torch.cat([torch.cat([block(row, column) for column in candidates], dim=1) for row in candidates]),
            torch.cat([known[source].cross[:, own(source)] for source in candidates]),
        )

    def _chosen(
        self, layer: int, moments: Moments, held: Sequence[HeldOut], rope: RopeSpec, sources: int, ridge: float
    ) -> LayerMap:
        candidates = self.candidates[layer]

        def judged(chosen: Penalties) -> tuple[float, Penalties, LayerMap]:
            made = self._solved(moments, candidates, chosen)
            columns = [made(self.inputs(each.rows, made.sources)) for each in held]
            return attention_error(columns, held, layer, self._pair.receiver, rope), chosen, made

        _, known, best = min((judged([(each, ridge)]) for each in candidates), key=lambda each: each[0])
        while len(known) < sources:
            free = [each for each in candidates if each not in best.sources]
            tried = [judged([*known, (each, factor * ridge)]) for each in free for factor in FACTORS]
            _, known, best = min(tried, key=lambda each: each[0])
        return best

    def _solved(self, moments: Moments, candidates: Sequence[int], chosen: Penalties) -> LayerMap:
        at = [candidates.index(source) for source, _ in chosen]
        taken = torch.arange(len(moments.gram)).reshape(-1, self._width)[at].flatten()
        penalties = torch.tensor([penalty for _, penalty in chosen], dtype=torch.float64)
        matrix = solved(moments.gram[taken][:, taken], moments.cross[taken], penalties.repeat_interleave(self._width))
        inputs = moments.inputs_mean[taken], moments.inputs_scale[taken]
        sources = tuple(source for source, _ in chosen)
        return LayerMap(sources, *inputs, moments.targets_mean, moments.targets_scale, matrix)


def solved(
    gram: Float[Tensor, "inputs inputs"], cross: Float[Tensor, "inputs targets"], penalties: Float[Tensor, " inputs"]
) -> Float[Tensor, "targets inputs"]:
    """Return the matrix of the ridge regression that some correlations belong to.

    Source: Hoerl and Kennard, Technometrics 12 (1970), with a penalty of its own for each input, as Tikhonov's method
    has it. In float64: small penalties leave the correlations of neighbouring layers close to singular.

    Raises:
        UsageError: If the penalties do not make up for inputs that depend on each other.
    """
    factor, failed = torch.linalg.cholesky_ex(gram.to(torch.float64) + penalties.to(torch.float64).diag())
    if int(failed):
        raise UsageError(
            f"A penalty of {float(penalties.min()):g} is too small for these columns.", "Raise it, or give more text."
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
