"""A folder of cache files: on a disk, on a share, or in shared memory, where opening one copies nothing."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from unspoken.cache import KVCache
from unspoken.cachefile import FileManifest, map_packed, peek, read_packed, write_cache
from unspoken.errors import StorageError, TransportFailed, UsageError
from unspoken.transforms.codecs import codec_named
from unspoken.transports.protocol import Arrived, Judge, Sign, require_key

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - in a folder of the user's own there
SUFFIX = ".kv.safetensors"


@dataclass(frozen=True)
class Folder:
    """Cache files in a folder, one for each key.

    A file is written beside its place and put there as a whole; who has the old one open goes on reading it.

    Args:
        path: The folder; made, for its owner alone, if it is not there.
        own: Whether nobody but this user's own processes can have written there: they have looked at every number,
            and it is not looked at again.
        temporary: What removes it when the transport is closed; by default it stays.
    """

    path: Path
    own: bool = False
    temporary: TemporaryDirectory[str] | None = None

    def __post_init__(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TransportFailed(
                f"The folder {self.path} cannot be used: {error.strerror}.", "Choose a folder you may write to."
            ) from error

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def file(self, key: str) -> Path:
        """Return where the cache of a key lies, or would lie.

        Raises:
            UsageError: If it is no key.
        """
        return self.path / f"{require_key(key)}{SUFFIX}"

    def put(self, key: str, cache: KVCache, codec: str | None = None, sign: Sign | None = None) -> FileManifest:
        """Write a cache's file."""
        return write_cache(cache, self.file(key), codec, sign)

    def get(self, key: str, judge: Judge | None = None) -> Arrived:
        """Open a cache's file; its columns are memory-mapped."""
        file = self.file(key)
        try:
            header = peek(file)
            if judge is not None:
                judge(header)
            # Who asks for a seal asks whether the columns are those that were sealed.
            packed = map_packed(file, header) if self.own and judge is None else read_packed(file, header=header)
        except StorageError as error:
            raise self._gone(key, error) from error
        cache = codec_named(packed.manifest.dtype).unpack(packed)
        return Arrived(cache, header, header.file_bytes - header.header_bytes)

    def delete(self, key: str) -> None:
        """Remove a cache's file."""
        try:
            self.file(key).unlink()
        except OSError as error:
            raise self._gone(key, error) from error

    def close(self) -> None:
        """Leave everything where it is, or remove a temporary folder."""
        if self.temporary is not None:
            self.temporary.cleanup()

    def _gone(self, key: str, error: OSError | StorageError) -> TransportFailed:
        return TransportFailed(
            f"There is nothing under '{key}' in {self.path} that can be read ({type(error).__name__}).",
            "Ask the sender to put it there again.",
        )


def file_folder(where: str) -> Folder:
    """Return the transport of `file:PATH`: a folder on a disk or a share.

    Raises:
        UsageError: If no folder is named.
        TransportFailed: If it cannot be used.
    """
    if not where:
        raise UsageError("There is no folder in the address 'file:'.", "Write file:PATH.")
    return Folder(Path(where).expanduser())


def shared_memory(where: str) -> Folder:
    """Return the transport of `shm` or `shm:NAME`: a folder of the user's own in shared memory.

    Raises:
        UsageError: If the name cannot be a folder's.
        TransportFailed: If there is no shared memory, or the folder there is somebody else's.
    """
    if not SHARED_MEMORY.is_dir():
        raise TransportFailed(
            f"There is no shared memory at {SHARED_MEMORY} on this machine.", "Use file:PATH with a folder of yours."
        )
    path = SHARED_MEMORY / f"unspoken-{os.getuid()}{f'-{require_key(where)}' if where else ''}"
    found = Folder(path, own=True)
    about = path.lstat()  # Anybody may make a folder of this name here, or a link.
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise TransportFailed(
            f"The folder {path} is not yours alone.", f"See what it is, and remove it or `chmod 700 {path}`."
        )
    return found


def within_process(where: str) -> Folder:
    """Return the transport of `memory`: a folder in shared memory that ends with this process.

    Raises:
        UsageError: If a place is named: there is none to name.
    """
    if where:
        raise UsageError(f"The address 'memory:{where}' names a place.", "Write memory, or shm:NAME.")
    parent = str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    temporary = TemporaryDirectory(prefix="unspoken-", dir=parent)
    return Folder(Path(temporary.name), True, temporary)
