"""Read a cache file: header first, then one memory mapping, every tensor checked against its digest."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.cachefile.digest import digest_and_check
from unspoken.cachefile.header import CAPS, Caps, Header, peek, refused
from unspoken.errors import StorageError, UsageError

READERS = 2


def read_cache(path: str | Path, layers: Collection[int] | None = None, caps: Caps = CAPS) -> KVCache:
    """Return the cache of a file, memory-mapped; nothing is returned unless all of it is sound.

    Args:
        path: The file.
        layers: Indices of the layers wanted; by default all. Only these are read.
        caps: Most that the file may claim.

    Raises:
        StorageError: If the file cannot be read.
        CacheFileError: If it is damaged, changed, of another version, or holds NaN or infinity.
        UsageError: If a wanted layer is not in it.
    """
    path = Path(path)
    header = peek(path, caps)
    info = header.manifest.cache
    wanted = [layer for layer in info.layers if layers is None or layer.index in layers]
    if not wanted or (layers is not None and len(wanted) != len(set(layers))):
        raise UsageError(
            f"{path.name} does not hold all of the layers {sorted(layers or ())}.", "See `unspoken inspect`."
        )
    names = [f"layers.{layer.index}.{part}" for layer in wanted for part in ("keys", "values", "positions")]
    data = _mapped(path, header)
    _verify(path, header, data, names)
    tensors = {name: _tensor(data, header, name) for name in names}
    built = []
    for layer in wanted:
        keys, values, positions = (tensors[f"layers.{layer.index}.{part}"] for part in ("keys", "values", "positions"))
        built.append(KVLayer(layer.index, keys, values, positions, layer.kind))
    return KVCache.build(
        built,
        info.spec,
        rope=info.rope,
        spans=info.spans,
        token_ids=info.token_ids,
        lineage=info.lineage,
        sender=info.sender,
    )


def _mapped(path: Path, header: Header) -> Tensor:
    """Map the data of a file into memory, privately: writing to a tensor never reaches the file."""
    try:
        whole = torch.from_file(str(path), shared=False, size=header.file_bytes, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"The cache file {path} cannot be mapped: {error}.", "Give an existing file.") from error
    return whole[header.header_bytes :]


def _tensor(data: Tensor, header: Header, name: str) -> Tensor:
    entry = header.tensors[name]
    dtype = torch.int32 if name.endswith("positions") else DTYPES[header.manifest.cache.dtype]
    return data[entry.start : entry.stop].view(dtype).reshape(entry.shape)


def _verify(path: Path, header: Header, data: Tensor, names: Sequence[str]) -> None:
    """Check digests and numbers on two threads; both release the interpreter lock."""
    raw, dtype = data.numpy(), header.manifest.cache.dtype

    def problems(share: Sequence[str]) -> list[str]:
        found = []
        for name in share:
            entry = header.tensors[name]
            positions = name.endswith("positions")
            digest, sound = digest_and_check(raw[entry.start : entry.stop], "int32" if positions else dtype)
            if digest != header.manifest.digests.get(name):
                found.append(f"is damaged: '{name}' does not match its digest")
            elif not sound:
                found.append(f"holds {'negative positions' if positions else 'NaN or infinite numbers'} in '{name}'")
        return found

    with ThreadPoolExecutor(READERS) as pool:
        found = [each for share in pool.map(problems, (names[at::READERS] for at in range(READERS))) for each in share]
    if found:
        raise refused(path, found[0])
