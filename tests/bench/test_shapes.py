"""Files of random weights: the shape they claim, the tokenizer they were given, and weights of a moderate size."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize

from unspoken.bench import shapes
from unspoken.bench.shapes import SHAPES, Built, build, random_blocks, tensors
from unspoken.errors import ModelNotFound, StorageError, UsageError
from unspoken.modelstore.rope import RopeFactors, rope_divisors
from unspoken.plan.gguf_sizes import read_gguf

TOKENS = [chr(letter) for letter in range(33, 97)]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with a tokenizer of 64 tokens, and hardly anything else."""
    path = tmp_path_factory.mktemp("source") / "tokenizer.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 99)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 63 + [3])
    writer.add_token_scores([0.5] * 64)
    writer.add_token_merges(["A B", "C D"])
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.ones((64, 32), dtype=np.float32))
    _finish(writer)
    return path


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Opened(NamedTuple):
    """What stands in a file."""

    fields: dict[str, Any]
    types: dict[str, Any]
    tensors: dict[str, Any]


def _open(path: Path) -> Opened:
    reader = GGUFReader(path)
    return Opened(
        {name: field.contents() for name, field in reader.fields.items()},
        {name: field.types for name, field in reader.fields.items()},
        {tensor.name: tensor for tensor in reader.tensors},
    )


@pytest.fixture(scope="module")
def tiny(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shape, built."""
    path = tmp_path_factory.mktemp("built") / "below" / "tiny.gguf"
    build("tiny", source, path)
    return path


def test_a_built_file_has_the_shape_asked_for(tiny: Path) -> None:
    shape, weights = read_gguf(tiny)
    truth = SHAPES["tiny"].shape
    assert (shape.layers, shape.hidden, shape.feed_forward) == (truth.layers, truth.hidden, truth.feed_forward)
    assert (shape.heads, shape.kv_heads, shape.head_dim) == (truth.heads, truth.kv_heads, truth.head_dim)
    assert (shape.context, shape.vocabulary, shape.tied) == (truth.context, len(TOKENS), False)
    assert shape.counted == 2 * truth.layer_parameters + 2 * 64 * 256 + 256
    assert weights.name == "Q4_0"


def test_it_says_what_it_is(tiny: Path) -> None:
    fields = _open(tiny).fields
    assert fields["general.architecture"] == "llama"
    assert fields["general.name"] == "tiny: random weights, for memory and time only"
    assert "nonsense" in fields["general.description"]
    assert fields["llama.rope.freq_base"] == SHAPES["tiny"].theta
    assert fields["llama.rope.dimension_count"] == 64
    assert fields["llama.vocab_size"] == 64
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_the_tokenizer_is_the_sources_to_the_field(tiny: Path, source: Path) -> None:
    built, given = _open(tiny), _open(source)
    names = {name for name in given.fields if name.startswith("tokenizer.")}
    assert names == {name for name in built.fields if name.startswith("tokenizer.")}
    assert len(names) == 9
    for name in names:
        assert built.fields[name] == given.fields[name]
        assert built.types[name] == given.types[name]
    assert built.fields["tokenizer.chat_template"] == TEMPLATE
    assert built.fields["llama.block_count"] == 2  # Nothing else is.


def test_tensors_have_the_names_and_the_order_of_axes_that_llama_cpp_wants(tiny: Path) -> None:
    found = {name: tuple(map(int, tensor.shape)) for name, tensor in _open(tiny).tensors.items()}
    layer = {
        "attn_q": (256, 256), "attn_k": (256, 128), "attn_v": (256, 128), "attn_output": (256, 256),
        "ffn_gate": (256, 512), "ffn_up": (256, 512), "ffn_down": (512, 256), "attn_norm": (256,), "ffn_norm": (256,),
    }  # fmt: skip
    expected = {f"blk.{index}.{name}.weight": shape for index in (0, 1) for name, shape in layer.items()}
    expected |= {"token_embd.weight": (256, 64), "output.weight": (256, 64), "output_norm.weight": (256,)}
    assert found == expected  # The header has the inputs of a matrix first.


def test_weights_keep_what_goes_through_them_at_its_size(tiny: Path) -> None:
    for name, tensor in _open(tiny).tensors.items():
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float64)
        assert values.size == tensor.n_elements
        if name.endswith("norm.weight"):
            assert np.array_equal(values, np.ones(256))
            continue
        deviation = 1.0 if name == "token_embd.weight" else float(tensor.shape[0]) ** -0.5
        assert values.std() == pytest.approx(deviation, rel=0.02)
        assert abs(values.mean()) < 4 * deviation / values.size**0.5
        vector = np.random.default_rng(0).standard_normal(values.shape[1])
        if name != "token_embd.weight":
            assert 0.6 < (values @ vector).std() < 1.5


def test_rows_are_not_alike(tiny: Path) -> None:
    matrices = [np.asarray(tensor.data) for tensor in _open(tiny).tensors.values() if tensor.tensor_type.name == "Q4_0"]
    rows = [row.tobytes() for matrix in matrices for row in matrix]
    assert len(set(rows)) == len(rows)


def test_the_same_shape_and_tokenizer_give_the_same_file(tiny: Path, source: Path, tmp_path: Path) -> None:
    build("tiny", source, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == tiny.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.gguf"]


def test_a_matrix_is_the_same_in_however_many_pieces_it_is_drawn(
    tiny: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "VALUES_AT_ONCE", 7 * 256)
    build("tiny", source, tmp_path / "pieces.gguf")
    assert (tmp_path / "pieces.gguf").read_bytes() == tiny.read_bytes()


def test_a_file_that_is_there_is_replaced_as_a_whole(tiny: Path, source: Path, tmp_path: Path) -> None:
    (tmp_path / "old.gguf").write_bytes(b"old")
    (tmp_path / "old.gguf.part").write_bytes(b"left behind by a process that was killed")
    build("tiny", source, tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == tiny.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0])
def test_random_blocks_have_one_scale_with_both_signs(kind: GGMLQuantizationType) -> None:
    raw = random_blocks(64, 128, kind, 0.25, np.random.SFC64(1))
    values = dequantize(raw, kind)
    assert values.shape == (64, 128)
    assert values.std() == pytest.approx(0.25, rel=0.02)
    scales = raw.reshape(64 * 4, -1)[:, :2].copy().view("<f2")
    assert len(np.unique(np.abs(scales))) == 1
    assert 0.3 < (scales < 0).mean() < 0.7


# Real shapes are looked at without being built.


@pytest.mark.parametrize(("name", "vocabulary"), [("llama-3.1-8b", 128_256), ("mistral-7b", 32_768)])
def test_real_shapes_have_the_weights_of_the_real_models(name: str, vocabulary: int) -> None:
    built = SHAPES[name]
    assert built.shape.vocabulary == vocabulary
    wanted = [each for each in tensors(built) if each.name != "rope_freqs.weight"]
    assert sum(int(np.prod(each.shape)) for each in wanted) == built.shape.parameters
    layers = sum(each.stored_bytes for each in wanted if each.name.startswith("blk."))
    assert layers == 32 * ((built.shape.layer_parameters - 2 * 4096) // 32 * 18 + 2 * 4096 * 4)
    assert [each.name for each in tensors(built)].count("rope_freqs.weight") == (1 if name == "llama-3.1-8b" else 0)


def test_real_shapes_have_the_rope_of_the_real_models() -> None:
    llama, mistral = SHAPES["llama-3.1-8b"], SHAPES["mistral-7b"]
    assert (llama.theta, mistral.theta) == (5e5, 1e6)
    assert (llama.factors, mistral.factors) == (RopeFactors(8.0, 1.0, 4.0, 8192), None)
    assert (llama.shape.context, mistral.shape.context) == (131072, 32768)


def test_the_divisors_of_llama_3_1_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(np.arange(0, 128, 2) / 128)
    found = rope_divisors(128, 5e5, RopeFactors(8.0, 1.0, 4.0, 8192))
    assert (found.shape, found.dtype) == ((64,), np.float32)
    np.testing.assert_allclose(found, plain / scaled.numpy(), rtol=1e-5)
    assert (found[0], found[-1]) == (1.0, 8.0)


def test_rope_factors_are_written_as_a_tensor(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = RopeFactors(8.0, 1.0, 4.0, 512)
    monkeypatch.setitem(SHAPES, "stretched", Built(SHAPES["tiny"].shape, 1e4, factors))
    build("stretched", source, tmp_path / "a.gguf")
    tensor = _open(tmp_path / "a.gguf").tensors["rope_freqs.weight"]
    assert tensor.tensor_type is GGMLQuantizationType.F32
    assert np.array_equal(tensor.data, rope_divisors(64, 1e4, factors))


def test_an_unknown_shape_lists_the_known(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no shape named 'llama-4'") as caught:
        build("llama-4", source, tmp_path / "a.gguf")
    assert caught.value.hint == "Known: llama-3.1-8b, mistral-7b, tiny."


@pytest.mark.parametrize("data", [b"", b"no model", b"GGUF\x03\0\0\0"])
def test_a_source_that_cannot_be_read_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "source.gguf").write_bytes(data)
    with pytest.raises(ModelNotFound, match=r"The tokenizer of .* cannot be read") as caught:
        build("tiny", tmp_path / "source.gguf", tmp_path / "a.gguf")
    assert "SmolLM2" in caught.value.hint
    with pytest.raises(ModelNotFound, match="No such file"):
        build("tiny", tmp_path / "missing.gguf", tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_source_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_tensor("a", np.ones(4, dtype=np.float32))
    _finish(writer)
    with pytest.raises(ModelNotFound, match="holds no tokenizer"):
        build("tiny", tmp_path / "source.gguf", tmp_path / "a.gguf")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr(shapes, "_write", None)
    with pytest.raises(StorageError, match=r"takes 3\.9 GB and .* has 0\.0 GB free") as caught:
        build("llama-3.1-8b", source, tmp_path / "a.gguf")
    assert "Make room" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be written"):
        build("tiny", source, tmp_path / "file" / "a.gguf")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="it is a folder"):
        build("tiny", source, tmp_path / "folder")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shapes._RandomMatrix, "tofile", full)
    (tmp_path / "a.gguf").write_bytes(b"old")
    with pytest.raises(StorageError, match="No space left on device"):
        build("tiny", source, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "file", "folder"]
