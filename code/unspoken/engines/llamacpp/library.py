"""Find llama.cpp's library and declare what is used of it; the one seam between this package and its C API.

Any libllama will do whose calls and structures are known: the one `UNSPOKEN_LIBLLAMA` names, the one of an
installed llama-cpp-python (the package people with a GPU have), or the one inside xllamacpp, a wheel that needs
no compiler and comes with `unspoken[llamacpp]`. That wheel holds the whole library in its extension module,
which is opened here as a plain library; the package itself is never imported.
"""

from __future__ import annotations

import ctypes as c
import os
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unspoken.engines.llamacpp import structures
from unspoken.errors import EngineUnavailable

VARIABLE = "UNSPOKEN_LIBLLAMA"
_INSTALL = (
    "Install one with: pip install 'unspoken[llamacpp]' (no compiler needed), or llama-cpp-python built for your GPU, "
    f"or set {VARIABLE} to the path of a libllama."
)
_NAMES = {"win32": "llama.dll", "darwin": "libllama.dylib"}
_LOG = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)
_WARNING = 3

_P, _I, _U, _N, _S, _B = c.c_void_p, c.c_int32, c.c_uint32, c.c_size_t, c.c_char_p, c.c_bool
# Result and arguments; by-value structures are added once their layout is known.
_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (_LOG, _P)),
    "llama_backend_init": (None, ()),
    "llama_model_free": (None, (_P,)),
    "llama_free": (None, (_P,)),
    "llama_model_get_vocab": (_P, (_P,)),
    "llama_model_n_ctx_train": (_I, (_P,)),
    "llama_model_n_swa": (_I, (_P,)),
    "llama_model_rope_type": (_I, (_P,)),
    "llama_model_is_recurrent": (_B, (_P,)),
    "llama_model_is_hybrid": (_B, (_P,)),
    "llama_vocab_n_tokens": (_I, (_P,)),
    "llama_vocab_get_text": (_S, (_P, _I)),
    "llama_vocab_is_eog": (_B, (_P, _I)),
    "llama_tokenize": (_I, (_P, _S, _I, _P, _I, _B, _B)),
    "llama_detokenize": (_I, (_P, _P, _I, _P, _I, _B, _B)),
    "llama_get_logits": (_P, (_P,)),
    "llama_get_memory": (_P, (_P,)),
    "llama_memory_clear": (None, (_P, _B)),
    "llama_memory_seq_rm": (_B, (_P, _I, _I, _I)),
    "llama_memory_seq_cp": (None, (_P, _I, _I, _I, _I)),
    "llama_memory_seq_pos_max": (_I, (_P, _I)),
    "llama_state_seq_get_size_ext": (_N, (_P, _I, _U)),
    "llama_state_seq_get_data_ext": (_N, (_P, _P, _N, _I, _U)),
    "llama_state_seq_set_data_ext": (_N, (_P, _P, _N, _I, _U)),
    "llama_supports_gpu_offload": (_B, ()),
    "llama_model_default_params": (None, ()),
    "llama_context_default_params": (None, ()),
    "llama_model_load_from_file": (_P, ()),
    "llama_init_from_model": (_P, ()),
    "llama_decode": (_I, (_P, structures.Batch)),
}
_DEVICE_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_backend_dev_count": (_N, ()),
    "ggml_backend_dev_get": (_P, (_N,)),
    "ggml_backend_dev_description": (_S, (_P,)),
    "ggml_backend_dev_type": (c.c_int, (_P,)),
}
_CPU_DEVICE = 0


@dataclass(frozen=True)
class Candidate:
    """A library that may be there: what it belongs to, with its version, and where it lies."""

    source: str
    path: Path


class Library:
    """An opened libllama whose calls and structures are known.

    Attributes:
        source: What it belongs to, with its version: "xllamacpp 2026.10.11549".
        path: Where it lies.
        calls: The library; its functions have their types declared.

    Raises:
        EngineUnavailable: If it cannot be opened, lacks a call, or its structures are not among the known ones.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.source, self.path = candidate.source, candidate.path
        try:
            self.calls: Any = c.CDLL(str(candidate.path))
        except OSError as error:
            raise EngineUnavailable(
                f"The llama.cpp library of {self.source} cannot be opened: {error}.", _INSTALL
            ) from error
        missing = [name for name in _CALLS if not hasattr(self.calls, name)]
        if missing:
            raise EngineUnavailable(
                f"The llama.cpp library of {self.source} lacks {', '.join(missing[:3])}"
                f"{f' and {len(missing) - 3} more calls' if len(missing) > 3 else ''}.",
                _INSTALL,
            )
        for name, (result, arguments) in _CALLS.items():
            function = getattr(self.calls, name)
            function.restype, function.argtypes = result, list(arguments)
        self._declare_structures()
        self._said: deque[str] = deque(maxlen=3)
        self._log = _LOG(self._heard)  # Kept: the library calls it as long as it lives.
        self.calls.llama_log_set(self._log, None)
        self.calls.llama_backend_init()

    def model_params(self) -> Any:
        """Return the default parameters of a model."""
        return self.calls.llama_model_default_params()

    def context_params(self) -> Any:
        """Return the default parameters of a context."""
        return self.calls.llama_context_default_params()

    def last_words(self) -> str:
        """Return what the library warned of last, and forget it."""
        said = " ".join(self._said)
        self._said.clear()
        return said

    def offloads(self) -> bool:
        """Tell whether the library can put layers on a graphics device of this machine."""
        return bool(self.calls.llama_supports_gpu_offload())

    def devices(self) -> list[str]:
        """Return the graphics devices the library can use, by description."""
        calls = self.calls
        if not self.offloads() or not all(hasattr(calls, name) for name in _DEVICE_CALLS):
            return []
        for name, (result, arguments) in _DEVICE_CALLS.items():
            function = getattr(calls, name)
            function.restype, function.argtypes = result, list(arguments)
        found = [calls.ggml_backend_dev_get(at) for at in range(calls.ggml_backend_dev_count())]
        graphics = [each for each in found if calls.ggml_backend_dev_type(each) != _CPU_DEVICE]
        return [calls.ggml_backend_dev_description(each).decode(errors="replace") for each in graphics]

    def _declare_structures(self) -> None:
        told: list[str] = []
        calls = self.calls
        model = structures.recognised(calls.llama_model_default_params, structures.MODEL_LAYOUTS, told.append)
        context = structures.recognised(calls.llama_context_default_params, structures.CONTEXT_LAYOUTS, told.append)
        if model is None or context is None:
            raise EngineUnavailable(
                f"The llama.cpp library of {self.source} has parameters of a layout that is not known here "
                f"({'; '.join(told)}).",
                "Use a version that is: xllamacpp 2026.10.11549 or llama-cpp-python 0.3.36.",
            )
        calls.llama_model_load_from_file.argtypes = [_S, model]
        calls.llama_init_from_model.argtypes = [_P, context]

    def _heard(self, level: int, text: bytes | None, _: object) -> None:
        if level >= _WARNING and text:
            self._said.append(text.decode(errors="replace").strip())


@cache
def library() -> Library:
    """Return the library to use, opened once per process.

    Raises:
        EngineUnavailable: If there is none, or the first one found cannot be used.
    """
    candidate = next(candidates(), None)
    if candidate is None:
        raise EngineUnavailable("There is no llama.cpp library on this machine.", _INSTALL)
    return Library(candidate)


def candidates() -> Iterator[Candidate]:
    """Yield the libraries that are there, the one to be used first."""
    named = os.environ.get(VARIABLE)
    if named:
        yield Candidate(f"{VARIABLE} ({named})", Path(named))
    file = _NAMES.get(sys.platform, "libllama.so")
    folder = _package("llama_cpp")
    if folder is not None:
        lies = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or folder / "lib") / file
        if lies.exists():
            yield Candidate(_titled("llama-cpp-python"), lies)
    folder = _package("xllamacpp")
    if folder is not None:
        yield from (Candidate(_titled("xllamacpp"), each) for each in sorted(folder.glob("xllamacpp.*")))


def _titled(package: str) -> str:
    """Return a package's name and its version, if it was installed as a package and not put there by hand."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package


def _package(name: str) -> Path | None:
    """Return the folder of an installed package, without importing it."""
    found = find_spec(name)
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) if places else None
