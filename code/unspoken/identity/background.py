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
# Of strangers who are taken for somebody, however many are enrolled.
STRANGERS = 0.01


class Alarm(msgspec.Struct, frozen=True):
    """How often somebody else's cache scores so high: a log-likelihood ratio and the share of non-target trials."""

    llr: float
    share: float


class BackgroundInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description in a background.

    Attributes:
        version: Of the form; a reader refuses those it does not know.
        spec: The model.
        learner: The projection's registered name.
        sites: Where signatures are read.
        cohort: Cards of those whose reading is taken away.
        calibration: From normalised scores to log-likelihood ratios.
        alarms: How often strangers score high, the shares falling.
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
    alarms: tuple[Alarm, ...]
    agents: int
    caches: int
    error_rates: dict[str, float]

    def threshold(self, profiles: int) -> float:
        """Return the log-likelihood ratio above which a cache is somebody's.

        A stranger is compared with every profile and may be taken for any: each comparison is allowed its part of the
        share of strangers that may pass. Where this asks for rarer events than were ever looked at, the rarest counts.

        Args:
            profiles: How many a cache is compared with.
        """
        allowed = STRANGERS / max(1, profiles)
        return next((alarm.llr for alarm in self.alarms if alarm.share <= allowed), self.alarms[-1].llr)


@dataclass(frozen=True, eq=False)
class Background:
    """What is known about a model.

    Attributes:
        info: The description.
        projection: From deviations at its sites to signatures.
        impostors: Signatures that nobody looks for.
    """

    info: BackgroundInfo
    projection: Projection
    impostors: Float[Tensor, "impostors kept"]

    def signatures(
        self, deviations: Float[Tensor, "*many layers parts kv_heads head_dim"]
    ) -> Float[Tensor, "*many kept"]:
        """Return what deviations look like in the space of cosines, with length 1."""
        return self.projection(at_sites(deviations, self.info.sites))

    def llrs(self, tests: Float[Tensor, "tests kept"], enrolled: Float[Tensor, "enrolled kept"]) -> Floats:
        """Return log-likelihood ratios, natural logarithms, `[tests, enrolled]`."""
        return self.info.calibration.llr(normalised(tests, enrolled, self.impostors))

    def digest(self) -> str:
        """Return a digest of everything in it, 32 hex digits."""
        hasher = blake3(msgspec.json.encode(self.info, order="deterministic"))
        for tensor in self._tensors().values():
            hasher.update(tensor.contiguous().numpy().tobytes())
        return hasher.hexdigest()[:32]

    def write(self, path: Path) -> None:
        """Write the background, replacing an earlier one as a whole.

        Raises:
            StorageError: If it cannot be written.
        """
        store.write(path, KEY, self.info, self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        found = self.projection
        return {"scale": found.scale, "shift": found.shift, "matrix": found.matrix.to(torch.float16),
                "impostors": self.impostors}  # fmt: skip

    @staticmethod
    def read(path: Path, spec: ModelSpec) -> Background:
        """Read the background of a model.

        Raises:
            StorageError: If it cannot be read.
            UsageError: If it is none, or of another version.
            IncompatibleCache: If it is another model's.
        """
        info, tensors = store.read(path, KEY, BackgroundInfo, WHAT)
        if info.version != VERSION or not info.alarms:
            raise UsageError(
                f"The background {path} has version {info.version}, this program reads {VERSION}.",
                "Make it again: `unspoken identity prepare`.",
            )
        require_compatible(info.spec, spec)
        if not info.cohort or not all(0 <= site.layer < spec.layers for site in info.sites):
            raise UsageError(
                f"The background {path} has no cohort, or sites that are none of the model's {spec.layers} layers.",
                "Make it again: `unspoken identity prepare`.",
            )
        sites, dims = len(info.sites), spec.kv_heads * spec.head_dim
        kept = tensors["matrix"].shape[-1] if "matrix" in tensors and tensors["matrix"].ndim == 2 else 0
        many = len(tensors["impostors"]) if "impostors" in tensors and tensors["impostors"].ndim else 0
        shapes = {"scale": (sites,), "shift": (sites * dims,), "matrix": (sites * dims, kept)}
        projection = Projection(*(store.require_shape(tensors, name, shape, WHAT) for name, shape in shapes.items()))
        return Background(info, projection, store.require_shape(tensors, "impostors", (many, kept), WHAT))


def enrolled_as(signatures: Sequence[Float[Tensor, "_ kept"]]) -> Float[Tensor, "agents kept"]:
    """Return one signature for each agent: the mean direction of its caches'."""
    return torch.stack([unit(each.mean(dim=0)) for each in signatures])


def normalised(
    tests: Float[Tensor, "tests kept"],
    enrolled: Float[Tensor, "enrolled kept"],
    impostors: Float[Tensor, "impostors kept"],
) -> Floats:
    """Return cosines after symmetric normalisation by impostors, see `unspoken.identity.calibration.as_norm`."""
    raw, against, tested = (
        cosines(*pair).to(torch.float64).numpy()
        for pair in ((tests, enrolled), (enrolled, impostors), (tests, impostors))
    )
    found: Floats = np.asarray(as_norm(raw, against, tested))
    return found
