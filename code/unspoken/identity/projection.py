"""From features to a space in which cosines tell agents apart: affine maps learned from agents nobody asks about.

Raw features differ by text, by wording and by agent, in this order of size. `whitened` shrinks the directions in which
one agent differs from itself, `lda` keeps those in which agents differ from one another, `plain` does neither.

All sites are mapped together. What rewording a card changes at one layer goes along with what it changes at others, and
only a map that sees them side by side can take it away: one map for each site leaves three times the errors
(docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.identity.features import PARTS
from unspoken.identity.libraries import learning_libraries
from unspoken.registry import Registry
from unspoken.spec import ModelSpec

PROJECTIONS = Registry(
    "projection",
    "unspoken.projections",
    {
        "plain": "unspoken.identity.projection:plain",
        "whitened": "unspoken.identity.projection:whitened",
        "lda": "unspoken.identity.projection:lda",
    },
)
# Share of the mean variance that is added to every direction, and directions kept; chosen on agents of development
# (docs/log.md), where half or twice as much makes no difference that counts.
RIDGE, KEPT = 0.03, 256
# Layers that are looked at.
DEPTHS = 10
# A deviation below this share of the feature itself is float32 rounding: a direction without evidence.
ROUNDING = 1e-5


class Site(msgspec.Struct, frozen=True):
    """Where in a model a signature is read: keys or values of one layer, all heads."""

    part: Literal["keys", "values"]
    layer: int


def default_sites(spec: ModelSpec) -> tuple[Site, ...]:
    """Return where signatures are read unless said otherwise: ten layers at even distances, up to the last.

    Never layer 0, which knows the token and no agent, unless there is no other.
    """
    ends = {(at + 1) * spec.layers // DEPTHS - 1 for at in range(DEPTHS)}
    layers = sorted(end for end in ends if end > 0) or [0]
    return tuple(Site(part, layer) for part in ("values", "keys") for layer in layers)


def deviation(
    features: Float[Tensor, "*many layers parts kv_heads head_dim"],
    baseline: Float[Tensor, "layers parts kv_heads head_dim"],
) -> Float[Tensor, "*many layers parts kv_heads head_dim"]:
    """Return how features differ from what the same text looks like whoever reads it.

    Where they differ by rounding only, as at layer 0 always, the difference is exactly zero: the cosine between two
    rounding errors would look like evidence.
    """
    found = features - baseline
    size = baseline.norm(dim=(-2, -1), keepdim=True)
    # Asked this way round, what is no number stays none, and no later score hides it.
    return torch.where(found.norm(dim=(-2, -1), keepdim=True) <= ROUNDING * size, torch.zeros(()), found)


def at_sites(
    features: Float[Tensor, "*many layers parts kv_heads head_dim"], sites: Sequence[Site]
) -> Float[Tensor, "*many sites dims"]:
    """Return the features of some sites, heads side by side.

    Raises:
        UsageError: If a layer does not exist.
    """
    layers = features.shape[-4]
    for site in sites:
        if not 0 <= site.layer < layers:
            raise UsageError(f"There is no layer {site.layer} among {layers}.", f"Choose 0 to {layers - 1}.")
    picked = [features[..., site.layer, PARTS.index(site.part), :, :].flatten(-2) for site in sites]
    return torch.stack(picked, dim=-2)


@dataclass(frozen=True, eq=False)
class Projection:
    """One affine map of all sites together.

    Attributes:
        scale: What each site is divided by, so that sites with large numbers do not drown the others, `[sites]`.
        shift: What is taken away then, `[sites * dims]`.
        matrix: What the rest is multiplied by, `[sites * dims, kept]`.
    """

    scale: Float[Tensor, " sites"]
    shift: Float[Tensor, " numbers"]
    matrix: Float[Tensor, "numbers kept"]

    def __call__(self, features: Float[Tensor, "*many sites dims"]) -> Float[Tensor, "*many kept"]:
        """Return the features in the new space with length 1, or 0 where there was no evidence."""
        evidence = (features != 0).flatten(-2).any(dim=-1, keepdim=True)
        return unit((_side_by_side(features, self.scale) - self.shift) @ self.matrix * evidence)


def unit(vectors: Float[Tensor, "*many dims"]) -> Float[Tensor, "*many dims"]:
    """Return vectors with length 1; zero stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def cosines(
    tests: Float[Tensor, "*tests kept"], enrolled: Float[Tensor, "enrolled kept"]
) -> Float[Tensor, "*tests enrolled"]:
    """Return the cosines between projected caches and signatures, from -1 to 1."""
    return tests @ enrolled.mT


@runtime_checkable
class Learner(Protocol):
    """Makes a projection of development data."""

    def __call__(self, features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
        """Return the projection learned from caches and whose they are.

        Raises:
            UsageError: If no agent has two caches: nothing tells what varies within one.
        """
        ...


def plain(features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
    """Only the mean of all agents is taken away, and directions kept in which caches differ most."""
    seen = _seen(features)
    return Projection(seen.scale, seen.shift, seen.basis @ _principal(seen.coordinates))


def whitened(features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
    """Directions count the less, the more an agent differs from itself in them: within-class whitening.

    The matrix is W^(-1/2), W being the mean covariance of an agent's caches around its own mean, with a ridge; then the
    directions are kept in which whitened caches differ most, which are those that tell agents apart. Source: Hatch,
    Kajarekar and Stolcke 2006, "Within-class covariance normalization for SVM-based speaker recognition".
    """
    seen = _seen(features)
    root = _inverse_root(_within(seen.coordinates, agents), features.shape[-2] * features.shape[-1])
    return Projection(seen.scale, seen.shift, seen.basis @ root @ _principal(seen.coordinates @ root))


def lda(features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
    """Only directions in which agents differ are kept, one fewer than there are agents at most.

    Linear discriminant analysis by scikit-learn on whitened features: there, what varies within agents is known and
    needs no other shrinkage.
    """
    white = whitened(features, agents)
    found = (_side_by_side(features, white.scale) - white.shift) @ white.matrix
    with learning_libraries():
        # Imported here: it takes half a second, and sets environment variables and warning filters.
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=RIDGE)
    model.fit(found.to(torch.float64).numpy(), agents.numpy())
    kept = min(len(set(agents.tolist())) - 1, found.shape[-1])
    scalings = torch.from_numpy(model.scalings_[:, :kept]).to(torch.float32)
    return Projection(white.scale, white.shift, white.matrix @ scalings)


@dataclass(frozen=True, eq=False)
class _Seen:
    """Features side by side in a basis of the directions that occur in them: no more than there are caches."""

    scale: Float[Tensor, " sites"]
    shift: Float[Tensor, " numbers"]
    basis: Float[Tensor, "numbers rank"]
    coordinates: Float[Tensor, "caches rank"]


def _seen(features: Float[Tensor, "caches sites dims"]) -> _Seen:
    size = features.norm(dim=-1).mean(dim=0)
    # A site where nobody showed anything has no unit, and no direction in the basis either.
    scale = torch.where(size > 0, size, torch.ones(()))
    rows = _side_by_side(features, scale)
    shift = rows.mean(dim=0)
    _, sizes, basis = torch.linalg.svd(rows - shift, full_matrices=False)
    kept = basis[sizes > ROUNDING * sizes.max()]
    if not sizes.max() > ROUNDING * rows.norm():
        raise UsageError("All caches look the same: nothing can be learned from them.", "Give caches of other agents.")
    return _Seen(scale, shift, kept.mT, (rows - shift) @ kept.mT)


def _side_by_side(
    features: Float[Tensor, "*many sites dims"], scale: Float[Tensor, " sites"]
) -> Float[Tensor, "*many numbers"]:
    return (features / scale[:, None]).flatten(-2)


def _principal(rows: Float[Tensor, "caches dims"]) -> Float[Tensor, "dims kept"]:
    """Return the directions in which centred rows differ most."""
    directions: Tensor = torch.linalg.svd(rows, full_matrices=False)[2]
    return directions[:KEPT].mT


def _within(features: Float[Tensor, "caches dims"], agents: Int[Tensor, " caches"]) -> Float[Tensor, "dims dims"]:
    """Return the mean covariance of each agent's caches around the agent's own mean."""
    everyone = set(agents.tolist())
    if len(everyone) == len(agents):
        raise UsageError(
            "No agent has two caches, so nothing tells what varies within one.", "Give several caches of each agent."
        )
    own = torch.zeros_like(features)
    for agent in everyone:
        own[agents == agent] = features[agents == agent].mean(dim=0)
    apart = features - own
    return apart.mT @ apart / len(apart)


def _inverse_root(covariance: Float[Tensor, "rank rank"], dims: int) -> Float[Tensor, "rank rank"]:
    """Return W^(-1/2) with a ridge that is a share of the mean variance of all dimensions, those not seen included."""
    ridge = RIDGE * covariance.trace() / dims
    values, vectors = torch.linalg.eigh(covariance.to(torch.float64) + ridge * torch.eye(len(covariance)))
    root: Tensor = (vectors * values.rsqrt()) @ vectors.mT
    return root.to(torch.float32)
