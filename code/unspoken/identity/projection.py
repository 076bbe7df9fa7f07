"""From features to a space in which cosines tell agents apart: affine maps learned from agents nobody asks about.

Raw features differ by text, by wording and by agent, in this order of size. `whitened` shrinks the directions in which
one agent differs from itself, `lda` keeps those in which agents differ from one another, `plain` does neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.identity.features import PARTS
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
# Share of the mean variance that is added to every direction; chosen on development agents (docs/log.md).
RIDGE = 0.3
# A deviation below this share of the feature itself is float32 rounding: a direction without evidence.
ROUNDING = 1e-5


class Site(msgspec.Struct, frozen=True):
    """Where in a model a signature is read: keys or values of one layer, all heads."""

    part: Literal["keys", "values"]
    layer: int


def default_sites(spec: ModelSpec) -> tuple[Site, ...]:
    """Return where signatures are read unless said otherwise; never layer 0, which knows no agent."""
    last = spec.layers - 1
    return (Site("values", min(1, last)), Site("values", last), Site("keys", last))


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
    return torch.where(found.norm(dim=(-2, -1), keepdim=True) > ROUNDING * size, found, torch.zeros(()))


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
    """One affine map for each site.

    Attributes:
        shift: What is taken away first, `[sites, dims]`.
        matrix: What the rest is multiplied by, `[sites, dims, kept]`.
    """

    shift: Float[Tensor, "sites dims"]
    matrix: Float[Tensor, "sites dims kept"]

    def __call__(self, features: Float[Tensor, "*many sites dims"]) -> Float[Tensor, "*many sites kept"]:
        """Return the features in the new space, each site with length 1, or 0 where there was no evidence."""
        evidence = features.norm(dim=-1, keepdim=True) > 0
        return unit(torch.einsum("...sd,sdk->...sk", features - self.shift, self.matrix) * evidence)


def unit(vectors: Float[Tensor, "*many dims"]) -> Float[Tensor, "*many dims"]:
    """Return vectors with length 1; zero stays zero."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def cosines(
    tests: Float[Tensor, "*tests sites kept"], enrolled: Float[Tensor, "enrolled sites kept"]
) -> Float[Tensor, "*tests enrolled"]:
    """Return the mean cosine over sites between projected caches and signatures, from -1 to 1."""
    return torch.einsum("...sk,esk->...e", tests, enrolled) / enrolled.shape[-2]


class Learner(Protocol):
    """Makes a projection of development data."""

    def __call__(self, features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
        """Return the projection learned from caches and whose they are."""
        ...


def plain(features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
    """Only the mean of all agents is taken away."""
    dims = features.shape[-1]
    return Projection(features.mean(dim=0), torch.eye(dims).expand(features.shape[1], dims, dims))


def whitened(features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
    """Directions count the less, the more an agent differs from itself in them: within-class whitening.

    The matrix is W^(-1/2), W being the mean covariance of an agent's caches around its own mean, with a ridge. Source:
    Hatch, Kajarekar and Stolcke 2006, "Within-class covariance normalization for SVM-based speaker recognition".
    """
    shift = features.mean(dim=0)
    matrices = [_inverse_root(_within(features[:, site], agents)) for site in range(features.shape[1])]
    return Projection(shift, torch.stack(matrices))


def lda(features: Float[Tensor, "caches sites dims"], agents: Int[Tensor, " caches"]) -> Projection:
    """Only directions in which agents differ are kept, one fewer than there are agents at most.

    Linear discriminant analysis with a covariance shrunk by the rule of Ledoit and Wolf 2004, by scikit-learn.
    """
    # Imported here: it takes half a second, and sets environment variables and warning filters.
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    matrices = []
    for site in range(features.shape[1]):
        model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
        model.fit(features[:, site].to(torch.float64).numpy(), agents.numpy())
        kept = min(len(np.unique(agents.numpy())) - 1, features.shape[-1])
        matrices.append(torch.from_numpy(model.scalings_[:, :kept]).to(torch.float32))
    return Projection(features.mean(dim=0), torch.stack(matrices))


def _within(features: Float[Tensor, "caches dims"], agents: Int[Tensor, " caches"]) -> Float[Tensor, "dims dims"]:
    """Return the mean covariance of each agent's caches around the agent's own mean, float64."""
    data = features.to(torch.float64)
    own = torch.zeros_like(data)
    for agent in sorted(set(agents.tolist())):
        own[agents == agent] = data[agents == agent].mean(dim=0)
    apart = data - own
    return apart.mT.mm(apart) / len(apart)


def _inverse_root(covariance: Float[Tensor, "dims dims"]) -> Float[Tensor, "dims dims"]:
    dims = len(covariance)
    ridge = RIDGE * covariance.trace() / dims
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(dims, dtype=covariance.dtype))
    root: Tensor = (vectors * values.rsqrt()).mm(vectors.mT)
    return root.to(torch.float32)
