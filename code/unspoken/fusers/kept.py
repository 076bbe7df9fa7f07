"""How every fuser gets into a folder and out of it, as the hub's mixin has it, and as strict as this package is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from unspoken.fusers import folder

# `Self` would say it shorter, and is more than the checks of types at run time understand.
Fuser = TypeVar("Fuser", bound="Kept")


class Kept(PyTorchModelHubMixin, library_name="unspoken", tags=["kv-cache", "fuser"]):
    """A fuser that can be kept: a base beside `nn.Module`, which sets `_config` when it is made.

    Further tags of a fuser's card are given where its class is defined, as with the hub's mixin.

    Attributes:
        kind: The registered name.
    """

    kind: ClassVar[str]
    _config: dict[str, Any]

    def save_pretrained(self, save_directory: str | Path, **hub: Any) -> str | None:
        """Write the fuser into a folder, as the hub's mixin does; until all of it is there, it holds no fuser.

        Args:
            save_directory: The folder.
            hub: See `PyTorchModelHubMixin.save_pretrained`.

        Raises:
            StorageError: If it cannot be written.
        """
        with folder.writable(Path(save_directory)):
            return super().save_pretrained(save_directory, **hub)

    @classmethod
    def from_pretrained(cls: type[Fuser], pretrained_model_name_or_path: str | Path, **hub: Any) -> Fuser:
        """Return the fuser of a folder, or of a repository on the hub.

        Args:
            pretrained_model_name_or_path: Either.
            hub: Options of the hub, see `unspoken.fusers.folder.HUB`.

        Raises:
            StorageError: If there is none, or its files cannot be read.
            UsageError: If they are no sound fuser of this kind.
        """
        return cast(Fuser, folder.built(cls, str(pretrained_model_name_or_path), hub))

    def _save_pretrained(self, save_directory: Path) -> None:
        folder.write(cast(nn.Module, self), self._config, save_directory)
