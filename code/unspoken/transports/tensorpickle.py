"""Read the pickles in which LMCache sends tensors between hosts, and nothing but tensors: a pickle may run any program.

Lists of CPU tensors name four things (`torch/_utils.py`, `torch/storage.py`): how a tensor is rebuilt, where its bytes
come from, an ordered dictionary, and types of elements. The bytes are a pickle in turn, which torch reads with
`weights_only`.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from typing import Any

import torch


def dumps(found: Any) -> bytes:
    """Return something pickled, as `pickle.dumps` does."""
    return pickle.dumps(found)


def loads(data: bytes) -> Any:
    """Return the tensors of a pickle.

    Raises:
        pickle.UnpicklingError: If there is anything else in it.
    """
    return _OnlyTensors(io.BytesIO(data)).load()


class _OnlyTensors(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
            ("torch.storage", "_load_from_bytes"): _storage,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) in allowed:
            return allowed[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"A pickle of tensors names {module}.{name}.")


def _storage(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)
