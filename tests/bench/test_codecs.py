"""The benchmark of codecs: each is measured on the same columns, and what loses nothing shows no loss."""

from __future__ import annotations

import json

import pytest
import torch

from unspoken.bench.codecs import measure, read, reference_text, stretched, table, usable
from unspoken.engines.fake import FakeEngine
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import ContextOverflow, UsageError
from unspoken.transforms.codecs import codec_named

KEYS = {
    "codec", "bytes", "bytes_ratio_bf16", "rms_keys", "rms_values", "kl_mean", "kl_max", "top1_agreement",
    "encode_gb_per_s", "decode_gb_per_s",
}  # fmt: skip


def test_every_codec_is_measured_and_what_is_lost_falls_with_its_bits(
    tiny_engine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.bench.codecs.TIMED_BYTES", 100_000)
    engine: TransformersEngine = tiny_engine()  # type: ignore[operator]
    told: list[str] = []
    threads = torch.get_num_threads()
    found = measure(engine, reference_text()[:2000], 200, 40, 1, told.append)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(found)) == found
    rows = {row["codec"]: row for row in found["rows"]}
    assert list(rows) == usable(engine.spec)
    assert told == [*(f"{name} ..." for name in rows), "rates ..."]
    assert all(row.keys() == KEYS for row in rows.values())
    assert rows["bfloat16"]["bytes_ratio_bf16"] == 1
    assert rows["float32"]["rms_keys"] == rows["float32"]["rms_values"] == 0
    assert rows["float32"]["kl_max"] < 1e-9
    assert rows["float32"]["top1_agreement"] == 1
    for part in ("rms_values", "kl_mean"):
        falling = [rows[name][part] for name in ("int4", "int8", "float32")]
        assert falling == sorted(falling, reverse=True)
        assert falling[0] > 4 * falling[1] > 0
    assert rows["int8"]["rms_values"] < 0.01 < rows["int4"]["rms_values"] < 0.2
    assert table(found).row_count == len(rows)


def test_a_text_that_is_too_short_or_too_long_is_refused(fake: FakeEngine) -> None:
    with pytest.raises(UsageError, match="The text has 10 tokens, 50 are needed"):
        read(fake, "ten tokens", 40, 10)
    with pytest.raises(ContextOverflow, match="the context is"):
        read(fake, "ten tokens", 1 << 20, 10)


def test_codecs_that_cannot_pack_a_models_heads_are_left_out(fake: FakeEngine) -> None:
    assert "int8" in usable(fake.spec)
    assert not any(name.startswith("q") for name in usable(fake.spec))  # Two heads of eight.


def test_columns_are_repeated_to_fill_a_size(fake: FakeEngine) -> None:
    content = read(fake, "The old mill is run by Anna.", 20, 5).content
    for size in (1000, 10_000):
        made = stretched(content, size)
        assert abs(made.bytes_held() - size) <= content.bytes_held() // content.columns
        assert torch.equal(made.layers[1].values[:, 0], content.layers[1].values[:, 0])
        assert made.manifest.rope == "removed"
        assert codec_named("int8").pack(made).bytes_held()


def test_the_text_that_comes_with_python_is_long_enough_for_the_default() -> None:
    assert len(reference_text()) > 8 * (2048 + 512)
