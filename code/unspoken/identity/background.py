"""What has to be known about a model before agents on it can be told apart, learned once from agents of no interest.

A background holds the cards of a cohort, where in the model signatures are read, the projection to a space of cosines,
impostors for score normalisation, and the calibration that turns scores into log-likelihood ratios, with the error
rates that were measured on the way. It holds no text that anybody read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from blake3 import blake3
from jaxtyping import Float
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.identity import store
from unspoken.identity.calibration import Calibration, as_norm
from unspoken.identity.metrics import Floats
from unspoken.identity.projection import Projection, Site, at_sites, cosines, unit
from unspoken.manifest import require_compatible
from unspoken.spec import ModelSpec

KEY, WHAT = "unspoken.background", "background"
VERSION = 1
SUFFIX = ".background.safetensors"


class BackgroundInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description in a background.

    Attributes:
        version: Of the form; a reader refuses those it does not know.
        spec: The model.
        learner: The projection's registered name.
        sites: Where signatures are read.
        cohort: Cards of those whose reading is taken away.
        calibration: From normalised scores to log-likelihood ratios.
        threshold: Log-likelihood ratio that one stranger in a hundred passes with the best of ten profiles.
        agents: Agents it was learned from.
        caches: Caches of theirs.
        error_rates: EER on agents that were left out in turn, as shares, by how the tested agent was told.
    """

    version: int
    spec: ModelSpec
    learner: str
    sites: tuple[Site, ...]
    cohort: tuple[str, ...]
    calibration: Calibration
    threshold: float
    agents: int
    caches: int
    error_rates: dict[str, float]


@dataclass(frozen=True, eq=False)
class Background:
    """What is known about a model.

    Attributes:
        info: The description.
        projection: From deviations at its sites to signatures.
        impostors: Signatures that nobody looks for, `[impostors, sites, kept]`.
    """

    info: BackgroundInfo
    projection: Projection
    impostors: Float[Tensor, "impostors sites kept"]

    def signatures(
        self, deviations: Float[Tensor, "*many layers parts kv_heads head_dim"]
    ) -> Float[Tensor, "*many sites kept"]:
        """Return what deviations look like in the space of cosines, each site with length 1."""
        return self.projection(at_sites(deviations, self.info.sites))

    def scores(
        self, tests: Float[Tensor, "tests sites kept"], enrolled: Float[Tensor, "enrolled sites kept"]
    ) -> Floats:
        """Return normalised scores, `[tests, enrolled]`: how far above those of impostors a cosine is."""
        return normalised(tests, enrolled, self.impostors)

    def llrs(self, tests: Float[Tensor, "tests sites kept"], enrolled: Float[Tensor, "enrolled sites kept"]) -> Floats:
        """Return log-likelihood ratios, natural logarithms, `[tests, enrolled]`."""
        return self.info.calibration.llr(self.scores(tests, enrolled))

    def digest(self) -> str:
        """Return a digest of everything in it, 32 hex digits."""
        hasher = blake3(msgspec.json.encode(self.info, order="deterministic"))
        for tensor in (self.projection.shift, self.projection.matrix, self.impostors):
            hasher.update(tensor.contiguous().numpy().tobytes())
        return hasher.hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Write the background, replacing an earlier one as a whole.

        Raises:
            StorageError: If it cannot be written.
        """
        tensors = {"shift": self.projection.shift, "matrix": self.projection.matrix, "impostors": self.impostors}
        store.write(path, KEY, self.info, tensors)

    @staticmethod
    def read(path: Path, spec: ModelSpec) -> Background:
        """Read the background of a model.

        Raises:
            StorageError: If it cannot be read.
            UsageError: If it is none, or of another version.
            IncompatibleCache: If it is another model's.
        """
        info, tensors = store.read(path, KEY, BackgroundInfo, WHAT)
        if info.version != VERSION:
            raise UsageError(
                f"The background {path} has version {info.version}, this program reads {VERSION}.",
                "Make it again: `unspoken identity prepare`.",
            )
        require_compatible(info.spec, spec)
        sites, dims = len(info.sites), spec.kv_heads * spec.head_dim
        kept = tensors["matrix"].shape[-1] if "matrix" in tensors and tensors["matrix"].ndim == 3 else 0
        many = len(tensors["impostors"]) if "impostors" in tensors and tensors["impostors"].ndim else 0
        matrix = store.require_shape(tensors, "matrix", (sites, dims, kept), WHAT)
        shift = store.require_shape(tensors, "shift", (sites, dims), WHAT)
        impostors = store.require_shape(tensors, "impostors", (many, sites, kept), WHAT)
        return Background(info, Projection(shift, matrix), impostors)


def enrolled_as(signatures: Sequence[Float[Tensor, "caches sites kept"]]) -> Float[Tensor, "agents sites kept"]:
    """Return one signature for each agent: the mean direction of its caches' at each site."""
    return torch.stack([unit(each.mean(dim=0)) for each in signatures])


def normalised(
    tests: Float[Tensor, "tests sites kept"],
    enrolled: Float[Tensor, "enrolled sites kept"],
    impostors: Float[Tensor, "impostors sites kept"],
) -> Floats:
    """Return cosines after symmetric normalisation by impostors, see `unspoken.identity.calibration.as_norm`."""
    raw, against, tested = (
        cosines(*pair).to(torch.float64).numpy()
        for pair in ((tests, enrolled), (enrolled, impostors), (tests, impostors))
    )
    found: Floats = np.asarray(as_norm(raw, against, tested))
    return found
