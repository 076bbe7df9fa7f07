"""Read a cache file: header first, then one memory mapping, every tensor checked against its digest; then unpack."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.cachefile.digest import digest_and_check
from unspoken.cachefile.header import CAPS, Caps, Entry, Header, peek, refused
from unspoken.errors import StorageError, UsageError
from unspoken.layout import Part
from unspoken.packed import ELEMENTS, Packed
from unspoken.transforms.codecs import codec_named

READERS = 2


def read_cache(
    path: str | Path, layers: Collection[int] | None = None, caps: Caps = CAPS, header: Header | None = None
) -> KVCache:
    """Return the cache of a file; nothing is returned unless all of it is sound.

    Keys and values of a float type are memory-mapped; packed ones (int8, int4, q8_0, q4_0) are unpacked to float32.

    Args:
        path: The file.
        layers: Indices of the layers wanted; by default all. Only these are read.
        caps: Most that the file may claim.
        header: The file's header, where it was read and judged before; by default it is read here. Every tensor is
            compared with the digests in it, so a file that was put in the place of the one judged is refused.

    Raises:
        StorageError: If the file cannot be read.
        CacheFileError: If it is damaged, changed, of another version, or holds NaN or infinity.
        UsageError: If a wanted layer is not in it.
    """
    packed = read_packed(path, layers, caps, header)
    return codec_named(packed.manifest.dtype).unpack(packed)


def read_packed(
    path: str | Path, layers: Collection[int] | None = None, caps: Caps = CAPS, header: Header | None = None
) -> Packed:
    """Return what lies in a file, memory-mapped and not unpacked; arguments and errors are those of `read_cache`."""
    path = Path(path)
    header = peek(path, caps) if header is None else header
    packed = map_packed(path, header, layers)
    _verify(path, header, packed.tensors)
    return packed


def map_packed(path: str | Path, header: Header, layers: Collection[int] | None = None) -> Packed:
    """Return what lies in a file, memory-mapped and compared with nothing.

    For files that this user's own processes wrote, with `write_packed`, where nobody else writes; all others are read
    with `read_packed`.

    Args:
        path: The file.
        header: Its header.
        layers: Indices of the layers wanted; by default all.

    Raises:
        StorageError: If the file cannot be mapped.
        UsageError: If a wanted layer is not in it.
    """
    path, info = Path(path), header.manifest.cache
    wanted = [layer for layer in info.layers if layers is None or layer.index in layers]
    if not wanted or (layers is not None and len(wanted) != len(set(layers))):
        raise UsageError(
            f"{path.name} does not hold all of the layers {sorted(layers or ())}.", "See `unspoken inspect`."
        )
    kept = tuple(f"layers.{layer.index}." for layer in wanted)
    chosen = {name: part for name, part in header.parts.items() if name.startswith(kept)}
    data = _mapped(path, header)
    tensors = {name: _tensor(data, header.tensors[name], part) for name, part in chosen.items()}
    return Packed(msgspec.structs.replace(info, layers=tuple(wanted)), tensors)


def _mapped(path: Path, header: Header) -> Tensor:
    """Map the data of a file into memory, privately: writing to a tensor never reaches the file."""
    try:
        whole = torch.from_file(str(path), shared=False, size=header.file_bytes, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"The cache file {path} cannot be mapped: {error}.", "Give an existing file.") from error
    return whole[header.header_bytes :]


def _tensor(data: Tensor, entry: Entry, part: Part) -> Tensor:
    return data[entry.start : entry.stop].view(ELEMENTS[part.element]).reshape(part.shape)


def _verify(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Check digests and numbers on two threads; both release the interpreter lock."""
    names = list(tensors)

    def problems(share: Sequence[str]) -> list[str]:
        found = []
        for name in share:
            element = header.parts[name].element
            digest, sound = digest_and_check(tensors[name].reshape(-1).view(torch.uint8).numpy(), element)
            if digest != header.manifest.digests.get(name):
                found.append(f"is damaged: '{name}' does not match its digest")
            elif not sound:
                bad = "negative positions" if element == "int32" else "NaN or infinite numbers"
                found.append(f"holds {bad} in '{name}'")
        return found

    with ThreadPoolExecutor(READERS) as pool:
        found = [each for share in pool.map(problems, (names[at::READERS] for at in range(READERS))) for each in share]
    if found:
        raise refused(path, found[0])
