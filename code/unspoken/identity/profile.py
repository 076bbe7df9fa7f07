"""What is kept of an agent that shall be recognised: one file each, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.identity import store
from unspoken.identity.calibration import Calibration
from unspoken.manifest import require_compatible
from unspoken.spec import ModelSpec
from unspoken.trust.keys import require_name

KEY, WHAT = "unspoken.profile", "profile"
VERSION = 1
SUFFIX = ".profile.safetensors"


class ProfileInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description in a profile.

    Attributes:
        version: Of the form; a reader refuses those it does not know.
        name: The agent.
        spec: The model whose caches it was enrolled with.
        background: Digest of the background in force; another one measures otherwise.
        caches: How many it was enrolled with.
        columns: Content columns of all of them.
        layers: Layers that are used for a decision.
        calibration: How its scores become log-likelihood ratios.
        error_rates: What was measured with the background, as shares: EER by condition.
    """

    version: int
    name: str
    spec: ModelSpec
    background: str
    caches: int
    columns: int
    layers: tuple[int, ...]
    calibration: Calibration
    error_rates: dict[str, float]


@dataclass(frozen=True, eq=False)
class Profile:
    """An enrolled agent.

    Attributes:
        info: The description.
        signature: What caches are compared with: the mean direction of its own, projected.
        deviation: How its columns differ from the cohort's on the same words, the mean over its caches.
        spread: How much that varies from cache to cache, as a standard deviation; zeros for one cache.
    """

    info: ProfileInfo
    signature: Float[Tensor, " kept"]
    deviation: Float[Tensor, "layers parts kv_heads head_dim"]
    spread: Float[Tensor, "layers parts kv_heads head_dim"]

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.info.name

    def write(self, path: Path) -> None:
        """Write the profile, replacing an earlier one as a whole.

        Raises:
            StorageError: If it cannot be written.
        """
        tensors = {"signature": self.signature, "deviation": self.deviation, "spread": self.spread}
        store.write(path, KEY, self.info, tensors)

    @staticmethod
    def read(path: Path) -> Profile:
        """Read a profile.

        Raises:
            StorageError: If it cannot be read.
            UsageError: If it is none, or of another version.
        """
        info, tensors = store.read(path, KEY, ProfileInfo, WHAT)
        if info.version != VERSION:
            raise UsageError(
                f"The profile {path} has version {info.version}, this program reads {VERSION}.", "Enrol the agent anew."
            )
        shape = (info.spec.layers, 2, info.spec.kv_heads, info.spec.head_dim)
        kept = tensors["signature"].numel() if "signature" in tensors else 0
        shapes = {"signature": (kept,), "deviation": shape, "spread": shape}
        return Profile(info, *(store.require_shape(tensors, name, each, WHAT) for name, each in shapes.items()))

    def require_for(self, spec: ModelSpec, background: str) -> None:
        """Refuse a profile of another model, or one that another background made.

        Args:
            spec: The model.
            background: Digest of the background in force.

        Raises:
            IncompatibleCache: With every difference that matters.
            UsageError: If it was enrolled with another background.
        """
        require_compatible(self.info.spec, spec)
        if self.info.background != background:
            raise UsageError(
                f"The profile of {self.name} was enrolled with background {self.info.background}; the one in force is "
                f"{background}, and they do not measure alike.",
                "Enrol the agent anew.",
            )


def spread_of(
    deviations: Float[Tensor, "caches layers parts kv_heads head_dim"],
) -> Float[Tensor, "layers parts kv_heads head_dim"]:
    """Return the standard deviation over caches; zeros where there is one only."""
    return deviations.std(dim=0) if len(deviations) > 1 else torch.zeros_like(deviations[0])


def profile_path(folder: Path, name: str) -> Path:
    """Return where the profile of an agent lies.

    Raises:
        UsageError: If the name cannot be a file's.
    """
    require_name(name)
    return folder / f"{name}{SUFFIX}"


def profiles_in(folder: Path, names: Sequence[str] = ()) -> tuple[Profile, ...]:
    """Return the profiles of a folder, all of them or those of some names.

    Raises:
        UsageError: If a name has no profile, or there is none at all.
        StorageError: If one cannot be read.
    """
    paths = {path.name.removesuffix(SUFFIX): path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    missing = [name for name in names if name not in paths]
    if missing or not paths:
        known = f"Enrolled are {', '.join(paths)}." if paths else "Enrol one first: `unspoken identity enroll`."
        raise UsageError(f"There is no profile of {missing[0] if missing else 'anybody'} in {folder}.", known)
    return tuple(Profile.read(paths[name]) for name in names or paths)
