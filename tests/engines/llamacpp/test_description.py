"""A GGUF file is described as transformers' reading of the same model is, once, and no file ends the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from torch import nn

from unspoken.engines.fake import FakeEngine
from unspoken.engines.gate import BOUNDS
from unspoken.engines.llamacpp import describe as module
from unspoken.engines.llamacpp import load
from unspoken.engines.llamacpp.context import Model
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.engines.llamacpp.library import Library
from unspoken.engines.llamacpp.opened import _precision
from unspoken.engines.protocol import Loading
from unspoken.errors import ModelNotFound, UnsupportedModel, UsageError
from unspoken.manifest import compare
from unspoken.transforms.blocks import ElementType

from .tiny import VOCABULARY, WIDE, File, write_model

Engines = Callable[..., Any]
SAME = ("family", "layers", "kv_heads", "head_dim", "vocabulary", "context", "weights", "architecture", "tokenizer")


@pytest.fixture
def written(
    libllama: Library, tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> Callable[..., Path]:
    """Write the GGUF file of a tiny model with some fields changed, as `write_model` takes them."""

    def make(changed: dict[str, Any] | None = None, template: str | None = None, kind: str = "llama") -> Path:
        tokenizer = tiny_tokenizer() if template is None else tiny_tokenizer(template)
        return write_model(tmp_path / "changed.gguf", tiny_model(kind, **VOCABULARY), tokenizer, changed)

    return make


def opened(path: Path, memory: Path | None = None, name: str = "tiny", **loading: Any) -> LlamaCppEngine:
    """The engine on a file, which the test closes."""
    return load(File(path, memory, name), Loading(threads=1, **loading))


def test_a_file_is_described_as_the_transformers_model_is(kind: str, tiny_llama: Engines, tiny_hf: Engines) -> None:
    ours, theirs = tiny_llama(kind).spec, tiny_hf(kind).spec
    assert {name: getattr(ours, name) for name in SAME} == {name: getattr(theirs, name) for name in SAME}
    assert ours.chat_template == theirs.chat_template
    assert (ours.rope.kind, ours.rope.pairing, ours.rope.attention_scaling) == (theirs.rope.kind, "half", 1.0)
    # Two ways to divide in float32: a frequency may differ in its last bit, which llama3's in fact does.
    np.testing.assert_array_max_ulp(
        np.array(ours.rope.inverse_frequencies, np.float32), np.array(theirs.rope.inverse_frequencies, np.float32), 1
    )
    assert compare(ours, theirs) == compare(theirs, ours) == []


def test_heads_wider_than_the_model_are_described_alike(tiny_llama: Engines, tiny_hf: Engines) -> None:
    for kind in ("llama", "qwen3"):
        assert compare(tiny_llama(kind, **WIDE).spec, tiny_hf(kind, **WIDE).spec) == []


def test_shared_embeddings_are_described_alike(tiny_llama: Engines, tiny_hf: Engines) -> None:
    shared = {"tie_word_embeddings": True}
    assert compare(tiny_llama("llama", **shared).spec, tiny_hf("llama", **shared).spec) == []
    assert tiny_llama("llama", **shared).spec.weights != tiny_llama("llama").spec.weights


def test_other_weights_rope_or_architecture_are_told_apart(tiny_llama: Engines) -> None:
    one = tiny_llama("llama").spec
    assert [each.field for each in compare(one, tiny_llama("llama", seed=1).spec)] == ["weights"]
    assert [each.field for each in compare(one, tiny_llama("llama3").spec)] == ["rope"]
    assert [each.field for each in compare(one, tiny_llama("linear").spec)] == ["rope"]
    assert [each.field for each in compare(one, tiny_llama("llama", rms_norm_eps=1e-5).spec)] == ["architecture"]
    assert {"family", "weights", "architecture"} <= {each.field for each in compare(one, tiny_llama("qwen2").spec)}


@pytest.mark.parametrize(
    "changed",
    [
        {"{arch}.rope.scaling.type": None},
        {"{arch}.rope.scaling.type": None, "{arch}.rope.scaling.factor": None, "{arch}.rope.scale_linear": 4.0},
    ],
    ids=["without a type", "by the older name"],
)
def test_a_linear_factor_is_seen_however_a_file_tells_it(
    changed: dict[str, Any], written: Callable[..., Path], tiny_llama: Engines
) -> None:
    engine = opened(written(changed, kind="linear"))
    assert engine.spec.rope == tiny_llama("linear").spec.rope
    engine.close()


def test_a_linear_factor_is_not_seen_where_a_file_says_that_nothing_is_scaled(
    written: Callable[..., Path], tiny_llama: Engines
) -> None:
    engine = opened(written({"{arch}.rope.scaling.type": "none"}, kind="linear"))
    assert engine.spec.rope == tiny_llama("llama").spec.rope
    engine.close()


def test_files_of_models_without_movable_columns_are_refused_by_name(written: Callable[..., Path]) -> None:
    for changed, reason in (
        ({"{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0}, "its RoPE is scaled by 'yarn'"),
        ({"{arch}.attention.kv_lora_rank": 8}, "it keeps compressed latents instead of keys and values"),
    ):
        with pytest.raises(
            UnsupportedModel, match=f"Caches of 'llama' models cannot be handed over: {reason}"
        ) as error:
            opened(written(changed))
        assert "Use a model with full attention" in error.value.hint


# What llama.cpp says of a model, what its file says, and the words it is refused with.
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a window": ({"window": 64}, {}, "its layers forget columns outside a sliding window of 64"),
    "a state": ({"recurrent": True}, {}, "some layers keep a recurrent state"),
    "M-RoPE": ({"rope_type": 8}, {}, r"its RoPE is of another kind \(8\)"),
    "no RoPE": ({"rope_type": -1}, {}, r"its RoPE is of another kind \(-1\)"),
    "part of a head": ({}, {"rope.dimension_count": 8}, "its RoPE turns only 8 of 16 coordinates"),
    "two sizes": ({}, {"attention.value_length": 32}, r"its keys and values differ in size \(32\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_llama_cpp_would_open_are_refused_for_what_it_says_of_them(name: str) -> None:
    told, own, reason = REFUSED[name]
    sound = {"window": 0, "recurrent": False, "rope_type": module.PAIRS_HALVES}
    module._refuse(mock.Mock(spec=Model, **sound), "llama", {}, 16)
    with pytest.raises(UnsupportedModel, match=reason):
        module._refuse(mock.Mock(spec=Model, **(sound | told)), "llama", own, 16)


def test_layers_that_differ_in_their_heads_are_refused() -> None:
    assert module._number({"attention.head_count_kv": [2, 2]}, "attention.head_count_kv", "llama") == 2
    for found in ([2, 4], [], None, "2"):
        with pytest.raises(UnsupportedModel, match=r"its layers differ or it does not tell its attention\.head_"):
            module._number({"attention.head_count_kv": found}, "attention.head_count_kv", "llama")


def test_a_description_is_remembered_until_the_file_changes(
    libllama: Library, tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path, memory = tmp_path / "model.gguf", tmp_path / "memory"
    shutil.copy(tiny_gguf("llama"), path)
    with mock.patch.object(module, "HeaderReader", side_effect=module.HeaderReader) as read:
        first = opened(path, memory)
        assert read.call_count == 1
        second = opened(path, memory, name="another name")
        assert read.call_count == 1
        assert second.spec.name == "another name"
        assert compare(first.spec, second.spec) == []
        assert second.frame("Be brief.") == first.frame("Be brief.")
        shutil.copy(tiny_gguf("llama", 1), path)
        os.utime(path, ns=(1, 1))
        changed = opened(path, memory)
        assert read.call_count == 2
        assert [each.field for each in compare(first.spec, changed.spec)] == ["weights"]
        opened(path).close()
        assert read.call_count == 3
    for engine in (first, second, changed):
        engine.close()
    assert len(list((memory / "specs").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"spec": 1}', b"\xff"])
def test_a_damaged_memory_is_described_anew(
    libllama: Library, tiny_gguf: Callable[..., Path], tmp_path: Path, damage: bytes
) -> None:
    opened(tiny_gguf("llama"), tmp_path).close()
    (kept,) = (tmp_path / "specs").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage)
    opened(tiny_gguf("llama"), tmp_path).close()
    assert kept.read_bytes() == whole


def test_special_tokens_are_those_that_the_file_names(
    written: Callable[..., Path], tiny_tokenizer: Callable[..., Any]
) -> None:
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}" + tiny_tokenizer().chat_template
    ids = {"bos": 256, "eos": 257, "padding": 65, "unknown": 66}
    path = written({f"tokenizer.ggml.{name}_token_id": at for name, at in ids.items()}, template)
    engine = opened(path)
    letters = [sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])[at][0] for at in (65, 66)]
    assert engine._template.startswith(f"<|im_start|><|im_end|>{letters[0]}{letters[1]}<|im_start|>system")
    engine.close()


@pytest.mark.parametrize("name", ["bos", "eos", "padding", "unknown"])
def test_a_special_token_outside_the_vocabulary_is_none(name: str, written: Callable[..., Path]) -> None:
    # Asked for such a token, llama.cpp would end the process.
    engine = opened(written({f"tokenizer.ggml.{name}_token_id": 99_999}))
    assert engine.logits(engine.frame("Be brief.").before).isfinite().all()
    engine.close()


def test_a_file_at_a_path_that_is_no_text_is_opened(
    libllama: Library, tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf"))
    try:
        shutil.copy(tiny_gguf("llama"), path)
    except OSError:
        pytest.skip("this file system takes only text")
    opened(path, tmp_path / "memory").close()


def test_a_file_that_is_no_model_is_refused(libllama: Library, tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path, whole = tmp_path / "broken.gguf", tiny_gguf("llama").read_bytes()
    for data in (b"", b"GGUF", b"PK\3\4" + bytes(100), whole[:100], whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ModelNotFound, match=r"llama\.cpp cannot open broken\.gguf: .") as error:
            opened(path)
        assert "no reason given" not in error.value.problem
        assert libllama.source in error.value.hint
    with pytest.raises(ModelNotFound, match=r"cannot open missing\.gguf"):
        opened(tmp_path / "missing.gguf")


def test_a_header_that_only_llama_cpp_can_read_is_refused_and_not_a_crash(
    libllama: Library, tiny_gguf: Callable[..., Path]
) -> None:
    for error in (ValueError("it is shorter than its header says"), KeyError("q9_9"), IndexError()):
        with (
            mock.patch.object(module, "HeaderReader", side_effect=error),
            pytest.raises(ModelNotFound, match="cannot be read as a GGUF model"),
        ):
            opened(tiny_gguf("llama"))


def test_settings_that_cannot_work_are_refused(libllama: Library, tiny_gguf: Callable[..., Path]) -> None:
    path = tiny_gguf("llama")
    for setting in ({"dtype": "float32"}, {"device": "cuda"}):
        (name,) = setting
        with pytest.raises(UsageError, match=f"The engine 'llamacpp' has no --{name}"):
            opened(path, **setting)
    with pytest.raises(UsageError, match=r"no element type 'q5_1' for a llama\.cpp cache") as error:
        opened(path, kv_type="q5_1")
    assert "f32, f16, q4_0, q8_0, bf16" in error.value.hint
    for kv_type in ("q8_0", "q4_0"):
        with pytest.raises(
            UsageError, match=f"Heads of 16 values cannot be stored as {kv_type}, in blocks of 32"
        ) as error:
            opened(path, kv_type=kv_type)
        assert "f16" in error.value.hint


@pytest.mark.parametrize("layers", [-1, 1])
def test_layers_for_a_device_that_is_not_there_are_refused(
    tiny_gguf: Callable[..., Path], libllama: Library, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libllama.calls, "llama_supports_gpu_offload", lambda: False)  # Also where there is one.
    with pytest.raises(UsageError, match=r"No layer can go on a graphics device: .* finds none") as error:
        opened(tiny_gguf("llama"), gpu_layers=layers)
    assert "Leave --gpu-layers out for the CPU" in error.value.hint


def test_the_transformers_engine_refuses_llama_cpps_settings(tiny_gguf: Callable[..., Path]) -> None:
    from unspoken.engines.transformers import load as load_transformers

    for setting in ({"kv_type": "f16"}, {"context": 512}, {"gpu_layers": 1}):
        with pytest.raises(UsageError, match="The engine 'transformers' has no --"):
            load_transformers(File(tiny_gguf("llama")), Loading(**setting))  # type: ignore[arg-type]


def test_a_version_tells_library_weights_cells_and_device(tiny_llama: Engines, libllama: Library) -> None:
    assert tiny_llama("llama").version == f"{libllama.source}, F32, f32, cpu"
    assert (tiny_llama("llama").dtype, tiny_llama("llama").precision) == ("float32", "ggml-f32")
    wide = tiny_llama("llama", "q8_0", **WIDE)
    assert wide.version == f"{libllama.source}, F32, q8_0, cpu"
    assert (wide.dtype, wide.precision) == ("float32", "ggml-q8_0")
    assert (tiny_llama("llama", "f16").dtype, tiny_llama("llama", "bf16").dtype) == ("float16", "bfloat16")


@pytest.mark.parametrize(
    ("weights", "kv_type", "precision"),
    [
        ("F32", "f32", "ggml-f32"), ("F16", "f16", "ggml-f16"), ("F16", "bf16", "ggml-bf16"),
        ("Q4_K", "f16", "ggml-quantised"), ("Q8_0", "q8_0", "ggml-quantised"), ("Q4_K", "q4_0", "ggml-q4_0"),
        # llama.cpp rounds activations to the type of the weights: 8 bits are left of them here. Measured on SmolLM2:
        # moved columns change a logit by 0.23, where float16's bounds allow 0.2.
        ("BF16", "f16", "ggml-bf16"), ("BF16", "f32", "ggml-bf16"),
    ],
)  # fmt: skip
def test_the_precision_is_the_coarsest_type_that_is_computed_in(weights: str, kv_type: str, precision: str) -> None:
    described = module.Description(FakeEngine().spec, "", "", weights)
    assert _precision(described, ElementType.named(kv_type)) == precision
    assert precision in BOUNDS


def test_text_becomes_tokens_and_text_again_as_in_transformers(tiny_llama: Engines, tiny_hf: Engines) -> None:
    ours, theirs = tiny_llama("llama"), tiny_hf("llama")
    for text in (
        "",
        "a",
        "The old mill.",
        "naïve 東京 🙂",
        " \n\t",
        "a\0b",
        "<|im_start|>user\nHi<|im_end|>",
        "x" * 5000,
    ):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    # Letters cut in the middle are marked, special tokens left out.
    for ids in ((), (300 - 44, 257), theirs.encode("🙂")[:3], (*theirs.encode("a🙂")[:4], 257)):
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("token", [258, 99_999, -1])
def test_a_token_that_there_is_none_of_is_refused(token: int, tiny_llama: Engines) -> None:
    engine = tiny_llama("llama")
    with pytest.raises(UsageError, match=f"There is no token {token} in a vocabulary of 258"):
        engine.decode((1, token))
