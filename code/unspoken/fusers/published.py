"""C2C's published checkpoint folders, read and written.

A folder holds `projector_0.json`, `projector_0.pt` and so on, one fuser each, and `projector_config.json`, the layer
map: receiver model, sender model, receiver layer, then pairs of sender layer and fuser. Source: thu-nics/C2C, as its
training writes them. Everything is checked before anything is returned, and no code of a file is run.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import msgspec
import torch
from torch import Tensor

from unspoken.cache import DTYPES
from unspoken.errors import StorageError, UsageError
from unspoken.fusers.c2c import C2CFuser
from unspoken.fusers.c2c_complex import C2CComplexFuser
from unspoken.fusers.c2c_pair import C2CPair, Fuser

CLASSES: dict[str, type[Fuser]] = {"C2CProjector": C2CFuser, "AllInOneProjector": C2CComplexFuser}
CONFIG = "projector_config.json"
MOST_JSON = 1 << 20
HINT = "Fetch the folder again, or give another one."

Number = Annotated[int, msgspec.Meta(ge=0)]
Entries = Annotated[list[tuple[Number, Number]], msgspec.Meta(min_length=1)]
LayerMaps = dict[Number, dict[Number, dict[Number, Entries]]]
T = TypeVar("T")


class _Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"kind": "class"}):
    kind: str
    init_args: msgspec.Raw


def read_published(folder: str | Path, sender: int = 1, receiver: int = 0) -> C2CPair:
    """Return the fusers of a published folder, in evaluation mode on the CPU.

    Where a receiver layer lists several sources, the first counts, as it does in the published code.

    Args:
        folder: The folder, or the one that holds it as `final`.
        sender: Number of the sender in the layer map; the receiver is model 0, senders count from 1.
        receiver: Number of the receiver.

    Raises:
        StorageError: If a file is missing or cannot be read.
        UsageError: If the folder is not sound, or has no such pair.
    """
    root = Path(folder)
    root = root if os.path.isfile(root / CONFIG) else root / "final"
    if not os.path.isfile(root / CONFIG):
        raise StorageError(f"There is no {CONFIG} in {folder} or its 'final'.", "Give a folder of published fusers.")
    maps = _decoded(_text(root / CONFIG), msgspec.json.Decoder(LayerMaps), root / CONFIG)
    entries = maps.get(receiver, {}).get(sender)
    if not entries:
        found = ", ".join(f"{a} from {b}" for a, senders in maps.items() for b in senders)
        raise UsageError(
            f"{root / CONFIG} has no layers for model {receiver} from model {sender}, only for: {found or 'none'}.",
            "Name one of these receivers and senders.",
        )
    count = _count(root)
    layers = {target: several[0] for target, several in entries.items()}
    named = sorted({fuser for _, fuser in layers.values()})
    if named[-1] >= count:
        raise UsageError(f"{root / CONFIG} names fuser {named[-1]}, the folder has {count}.", HINT)
    fusers = [_fuser(root / f"projector_{index}") for index in named]
    renumbered = {target: (source, named.index(fuser)) for target, (source, fuser) in layers.items()}
    return C2CPair(fusers, renumbered).eval()


def write_published(pair: C2CPair, folder: str | Path) -> None:
    """Write a pair's fusers as a new folder in the published form, as model 0's from model 1, whole or not at all.

    Raises:
        UsageError: If there is something of that name, or the pair has no fusers.
        StorageError: If the folder cannot be written.
    """
    root = Path(folder).absolute()
    if not pair.layers:
        raise UsageError("This pair has no fusers, expected one or more.", "Make it with a layer map.")
    if os.path.lexists(root):
        raise UsageError(f"{folder} exists already, expected a new folder.", "Give a name that is not taken.")
    part = root.with_name(f"{root.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.mkdir(parents=True)
        for index, fuser in enumerate(pair.fusers):
            state = {name: _copied(tensor.cpu(), tensor.dtype) for name, tensor in fuser.state_dict().items()}
            torch.save(state, part / f"projector_{index}.pt")
            (part / f"projector_{index}.json").write_text(
                json.dumps(_description(cast("Fuser", fuser))), encoding="utf-8"
            )
        maps = {"0": {"1": {str(target): [list(entry)] for target, entry in pair.layers.items()}}}
        (part / CONFIG).write_text(json.dumps(maps), encoding="utf-8")
        part.rename(root)
    except (OSError, RuntimeError) as error:  # torch's writer of archives reports a full disk as the latter.
        raise StorageError(f"The folder {folder} cannot be written: {_brief(error)}.", "Choose another one.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)  # Of a folder that could be written, nothing is left here.


def _description(fuser: Fuser) -> dict[str, Any]:
    (name,) = [name for name, kind in CLASSES.items() if isinstance(fuser, kind)]
    dtype = next(fuser.parameters()).dtype  # What it is now, which may not be what it was made as.
    stored = {"__type__": "torch.dtype", "value": str(dtype).removeprefix("torch.")}
    return {"class": name, "init_args": fuser.init_args | {"dtype": stored}}


def _count(root: Path) -> int:
    """Return how many fusers a folder has, numbered without gaps."""
    numbers: dict[str, set[int]] = {"json": set(), "pt": set()}
    try:
        for path in root.iterdir():
            if found := re.fullmatch(r"projector_(0|[1-9][0-9]{0,5})\.(json|pt)", path.name):
                numbers[found[2]].add(int(found[1]))
    except OSError as error:
        raise StorageError(f"The folder {root} cannot be read: {error.strerror}.", HINT) from error
    every = numbers["json"] | numbers["pt"]
    for index in range(max(every, default=0) + 1):
        for ending, there in numbers.items():
            if index not in there:
                raise StorageError(f"projector_{index}.{ending} is missing in {root}.", HINT)
    return len(every)


def _fuser(stem: Path) -> Fuser:
    described_at, weights_at = stem.with_suffix(".json"), stem.with_suffix(".pt")
    described = _decoded(_text(described_at), msgspec.json.Decoder(_Described), described_at)
    if described.kind not in CLASSES:
        raise UsageError(
            f"{described_at} is of class '{described.kind[:100]}', expected {' or '.join(CLASSES)}.",
            "Other classes of the published code have no counterpart here.",
        )
    kind = CLASSES[described.kind]
    form = msgspec.json.Decoder(_arguments(kind), dec_hook=_dtype)
    args = _decoded(bytes(described.init_args), form, described_at)
    try:
        with torch.device("meta"):  # Neither memory nor random numbers are spent before the weights are known to fit.
            fuser = kind(**msgspec.structs.asdict(args))
    except UsageError as error:
        raise UsageError(f"{described_at}: {error.problem}", error.hint) from error
    fuser.load_state_dict(_fitting(_weights(weights_at), fuser, weights_at), strict=True, assign=True)
    return fuser


def _arguments(kind: type[Fuser]) -> type[msgspec.Struct]:
    """Return the form of a class's stored arguments, from its signature."""
    hints = get_type_hints(kind.__init__)
    fields: list[Any] = [
        (each.name, hints[each.name])
        if each.default is inspect.Parameter.empty
        else (each.name, hints[each.name], each.default)
        for each in inspect.signature(kind).parameters.values()
    ]
    return msgspec.defstruct(f"{kind.__name__}Arguments", fields, forbid_unknown_fields=True)


def _weights(path: Path) -> dict[str, Tensor]:
    # Read first: torch reports some damaged archives as an OSError, as it does a file that cannot be read.
    data = io.BytesIO(_bytes(path))
    try:
        loaded = torch.load(data, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged archives fail in a dozen ways; files with code in them as UnpicklingError.
        raise UsageError(f"{path} holds no weights, or more than weights: {_brief(error)}.", HINT) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in loaded.items()
    ):
        raise UsageError(f"{path} is no state dict of tensors by name.", HINT)
    return loaded


def _fitting(weights: dict[str, Tensor], fuser: Fuser, path: Path) -> dict[str, Tensor]:
    expected = fuser.state_dict()
    missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise UsageError(f"{path} lacks {missing[:3] or 'nothing'} and has unknown {unknown[:3] or 'nothing'}.", HINT)
    for name, tensor in weights.items():
        if not _sound(tensor, expected[name]):
            raise UsageError(
                f"'{name}' of {path} is {tensor.dtype} {list(tensor.shape)}, expected dense finite floating-point "
                f"numbers {list(expected[name].shape)}.",
                HINT,
            )
    return {name: _copied(tensor, expected[name].dtype) for name, tensor in weights.items()}


def _sound(tensor: Tensor, expected: Tensor) -> bool:
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()
    # Strides can make a large tensor of a small file; no such thing was ever a parameter.
    return dense and tensor.shape == expected.shape and tensor.is_contiguous() and bool(tensor.isfinite().all())


def _copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Tensors may share memory, in a file as in a model; parameters must not, and a file would hold all of it.
    return tensor.detach().contiguous().to(dtype, copy=True)


def _text(path: Path) -> bytes:
    text = _bytes(path)
    if len(text) > MOST_JSON:
        raise UsageError(f"{path} has more than {MOST_JSON} bytes.", HINT)
    return text


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.", HINT) from error


def _decoded(data: bytes, form: msgspec.json.Decoder[T], path: Path) -> T:
    try:
        return form.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not what it should be: {_brief(error)}.", HINT) from error


def _dtype(kind: type, stored: object) -> torch.dtype:
    if kind is torch.dtype and isinstance(stored, dict) and stored.keys() == {"__type__", "value"}:
        dtype = (DTYPES | {"float64": torch.float64}).get(stored["value"]) if isinstance(stored["value"], str) else None
        if stored["__type__"] == "torch.dtype" and dtype is not None:
            return dtype
    raise ValueError(f"no dtype like {str(stored)[:100]}")


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
