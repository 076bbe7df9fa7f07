"""Which library is used, and that one whose calls or structures are not known is refused: no library is needed here."""

from __future__ import annotations

import ctypes as c
import ctypes.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from unspoken.engines.llamacpp import library as module
from unspoken.engines.llamacpp import load, structures
from unspoken.engines.llamacpp.library import Candidate, Library, candidates
from unspoken.engines.llamacpp.structures import CONTEXT_LAYOUTS, MODEL_LAYOUTS, recognised
from unspoken.engines.protocol import Loading
from unspoken.errors import EngineUnavailable

from .tiny import File

NEWER, OLDER = CONTEXT_LAYOUTS
# What llama.h sets, for those of the fields that are not zero.
DEFAULTS: dict[str, Any] = {
    "n_gpu_layers": -1, "split_mode": 1, "use_extra_bufts": True,
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4, "n_threads_batch": 4,
    "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1, "flash_attn_type": -1,
    "yarn_ext_factor": -1.0, "yarn_attn_factor": -1.0, "yarn_beta_fast": -1.0, "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0, "type_k": 1, "type_v": 1, "offload_kqv": True, "no_perf": True, "op_offload": True,
    "swa_full": True,
}  # fmt: skip
# The fields that this package sets: a layout that is wrong before one of them must not be taken.
SET = {
    "n_gpu_layers", "use_extra_bufts", "n_ctx", "n_seq_max", "n_batch", "n_ubatch", "n_threads", "n_threads_batch",
    "type_k", "type_v", "flash_attn_type",
}  # fmt: skip


class Function:
    """A foreign function that returns the same bytes whatever they are taken for."""

    def __init__(self, raw: bytes = b"") -> None:
        self.raw = raw
        self.restype: Any = None
        self.argtypes: list[Any] = []
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        if isinstance(self.restype, type) and issubclass(self.restype, c.Structure):
            return self.restype.from_buffer_copy(self.raw.ljust(1024, b"\0"))
        return None if self.restype is None else 0


class Calls:
    """An opened library that has every call, and parameters of the layouts given."""

    def __init__(self, model: bytes, context: bytes) -> None:
        for name in module._CALLS:
            setattr(self, name, Function())
        self.llama_model_default_params = Function(model)
        self.llama_context_default_params = Function(context)


def defaults(layout: type[c.Structure]) -> bytes:
    """The bytes of a library's defaults, in a layout."""
    made = layout()
    for name, value in DEFAULTS.items():
        if hasattr(layout, name):
            setattr(made, name, value)
    return bytes(made)


def opened(monkeypatch: pytest.MonkeyPatch, model: bytes, context: bytes) -> Library:
    """A library of such layouts."""
    monkeypatch.setattr(module.c, "CDLL", lambda _: Calls(model, context))
    return Library(Candidate("libfake 7", Path("libfake.so")))


@pytest.mark.parametrize("layout", [*MODEL_LAYOUTS, *CONTEXT_LAYOUTS])
def test_a_known_layout_is_recognised_by_the_librarys_own_defaults(layout: type[c.Structure]) -> None:
    told: list[str] = []
    layouts = MODEL_LAYOUTS if layout in MODEL_LAYOUTS else CONTEXT_LAYOUTS
    function = Function(defaults(layout))
    assert recognised(function, layouts, told.append) is layout
    assert function.restype is layout
    assert len(told) == layouts.index(layout)


@pytest.mark.parametrize("layout", [*MODEL_LAYOUTS, *CONTEXT_LAYOUTS])
@pytest.mark.parametrize("more", [4, 8, 12, 16])
def test_a_layout_that_is_shifted_before_a_field_that_is_set_is_none(layout: type[c.Structure], more: int) -> None:
    raw = defaults(layout)
    last = max(getattr(layout, name).offset for name in SET if hasattr(layout, name))
    starts = sorted({getattr(layout, name).offset for name, *_ in layout._fields_})
    layouts = MODEL_LAYOUTS if layout in MODEL_LAYOUTS else (layout,)
    for at in (start for start in starts if start <= last):
        for filler in (bytes(more), b"\xff" * more):
            told: list[str] = []
            assert recognised(Function(raw[:at] + filler + raw[at:]), layouts, told.append) is None, (at, filler)
            assert told[0].startswith(f"{layout.__name__}: ")
        assert recognised(Function(raw[:at] + raw[at + more :]), layouts, list[str]().append) is None, at


@pytest.mark.parametrize("raw", [b"", b"\xff" * 512, bytes(range(256))])
def test_an_unknown_layout_is_none_and_every_known_one_tells_why(raw: bytes) -> None:
    told: list[str] = []
    assert recognised(Function(raw), MODEL_LAYOUTS, told.append) is None
    assert recognised(Function(raw), CONTEXT_LAYOUTS, told.append) is None
    assert [each.split(":")[0] for each in told] == ["ModelParams", "ContextParamsCached", "ContextParamsPlain"]
    assert all(" is " in each and ", expected " in each for each in told)


@pytest.mark.parametrize("layout", CONTEXT_LAYOUTS)
def test_a_library_passes_its_parameters_in_the_layout_found(
    layout: type[c.Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(monkeypatch, defaults(structures.ModelParams), defaults(layout))
    assert type(found.context_params()) is layout
    assert type(found.model_params()) is structures.ModelParams
    assert found.context_params().n_ctx == 512
    assert found.calls.llama_init_from_model.argtypes == [c.c_void_p, layout]
    assert found.calls.llama_model_load_from_file.argtypes == [c.c_char_p, structures.ModelParams]
    assert len(found.calls.llama_backend_init.calls) == 1


@pytest.mark.parametrize("wrong", ["model", "context"])
def test_a_library_of_another_layout_is_refused_with_what_it_said(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = defaults(structures.ModelParams), defaults(NEWER)
    model, context = (bytes(8) + model, context) if wrong == "model" else (model, bytes(8) + context)
    with pytest.raises(EngineUnavailable, match="libfake 7 has parameters of a layout that is not known here") as error:
        opened(monkeypatch, model, context)
    assert "expected" in error.value.problem
    assert "xllamacpp 2026.10.11549" in error.value.hint


def test_a_library_without_a_call_is_refused_with_the_calls_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(defaults(structures.ModelParams), defaults(OLDER))
    del calls.llama_state_seq_set_data_ext
    monkeypatch.setattr(module.c, "CDLL", lambda _: calls)
    with pytest.raises(EngineUnavailable, match=r"of libfake lacks llama_state_seq_set_data_ext\.") as error:
        Library(Candidate("libfake", Path("libfake.so")))
    assert "pip install 'unspoken[llamacpp]'" in error.value.hint


@pytest.mark.skipif(ctypes.util.find_library("m") is None, reason="there is no mathematical library of C")
def test_another_library_altogether_is_refused_with_the_calls_it_lacks() -> None:
    with pytest.raises(EngineUnavailable, match=r"lacks llama_log_set, .* and \d+ more calls") as error:
        Library(Candidate("UNSPOKEN_LIBLLAMA", Path(str(ctypes.util.find_library("m")))))
    assert "UNSPOKEN_LIBLLAMA to the path of a libllama" in error.value.hint


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "libllama.so"
    text.write_text("no library")
    for path in (text, tmp_path, tmp_path / "nothing"):
        with pytest.raises(EngineUnavailable, match="library of here cannot be opened: ") as error:
            Library(Candidate("here", path))
        assert "pip install 'unspoken[llamacpp]'" in error.value.hint


def test_the_last_warnings_are_told_once_and_chatter_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(monkeypatch, defaults(structures.ModelParams), defaults(NEWER))
    for level, text in ((2, b"loading"), (3, b"first"), (3, b"second\n"), (4, b"th\xffird"), (4, None), (3, b"fourth")):
        found._heard(level, text, None)
    assert found.last_words() == "second th\ufffdird fourth"
    assert found.last_words() == ""


def test_devices_are_those_that_are_no_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(monkeypatch, defaults(structures.ModelParams), defaults(NEWER))
    kinds = {0: (0, b"A processor"), 1: (1, b"A graphics card"), 2: (2, b"A small one")}
    found.calls.ggml_backend_dev_count = lambda: 3
    found.calls.ggml_backend_dev_get = lambda at: at
    found.calls.ggml_backend_dev_type = lambda device: kinds[device][0]
    found.calls.ggml_backend_dev_description = lambda device: kinds[device][1]
    assert found.devices() == []  # `llama_supports_gpu_offload` says no.
    found.calls.llama_supports_gpu_offload = lambda: True
    assert found.devices() == ["A graphics card", "A small one"]
    del found.calls.ggml_backend_dev_type
    assert found.devices() == []


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds both packages, and nothing else on this machine."""
    for file in ("llama_cpp/lib/libllama.so", "llama_cpp/lib/llama.dll", "llama_cpp/lib/libllama.dylib",
                 "xllamacpp/xllamacpp.abi3.so", "xllamacpp/__init__.py", "built/libllama.so"):  # fmt: skip
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()

    def find(name: str) -> ModuleSpec | None:
        if not (tmp_path / name).is_dir():
            return None
        found = ModuleSpec(name, None, is_package=True)
        found.submodule_search_locations = [str(tmp_path / name)]
        return found

    monkeypatch.setattr(module, "find_spec", find)
    monkeypatch.setattr(module, "version", {"llama-cpp-python": "0.3.36", "xllamacpp": "2026.10"}.__getitem__)
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.delenv("UNSPOKEN_LIBLLAMA", raising=False)
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    return tmp_path


def test_the_library_named_comes_first_then_llama_cpp_python_then_xllamacpp(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [
        Candidate("llama-cpp-python 0.3.36", installed / "llama_cpp/lib/libllama.so"),
        Candidate("xllamacpp 2026.10", installed / "xllamacpp/xllamacpp.abi3.so"),
    ]
    assert list(candidates()) == both
    named = str(installed / "built/libllama.so")
    monkeypatch.setenv("UNSPOKEN_LIBLLAMA", named)
    assert list(candidates()) == [Candidate(f"UNSPOKEN_LIBLLAMA ({named})", Path(named)), *both]
    monkeypatch.setenv("UNSPOKEN_LIBLLAMA", "")
    assert list(candidates()) == both


def test_llama_cpp_python_is_looked_for_where_it_looks_itself(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(installed / "built"))
    assert next(candidates()).path == installed / "built/libllama.so"
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(installed / "nowhere"))
    assert next(candidates()).source == "xllamacpp 2026.10"
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    for platform, file in (("win32", "llama.dll"), ("darwin", "libllama.dylib")):
        monkeypatch.setattr(module.sys, "platform", platform)
        assert next(candidates()).path.name == file


def test_a_package_that_nothing_is_known_of_is_still_a_candidate(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", unknown)
    assert [each.path.name for each in candidates()] == ["libllama.so", "xllamacpp.abi3.so"]


def test_the_one_named_is_not_passed_over_when_it_cannot_be_used(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNSPOKEN_LIBLLAMA", str(installed / "missing.so"))
    with pytest.raises(EngineUnavailable, match=r"UNSPOKEN_LIBLLAMA \(.*missing\.so\) cannot be opened"):
        module.library.__wrapped__()


def test_without_any_library_the_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    monkeypatch.delenv("UNSPOKEN_LIBLLAMA", raising=False)
    monkeypatch.setattr(module, "library", module.library.__wrapped__)
    # The library is asked for before the model: nobody downloads one that cannot be opened.
    with pytest.raises(EngineUnavailable, match=r"There is no llama\.cpp library on this machine\.") as error:
        load(File(tmp_path / "missing.gguf"), Loading())
    assert "pip install 'unspoken[llamacpp]'" in error.value.hint
    assert "llama-cpp-python" in error.value.hint


def test_importing_the_engine_opens_no_library() -> None:
    code = (
        "import ctypes, sys; ctypes.CDLL = None; import unspoken.engines.llamacpp, unspoken.engines.llamacpp.library; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
