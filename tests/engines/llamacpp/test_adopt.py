"""A state that somebody saved is taken in if it is this model's, and refused with the reason if it is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from unspoken.engines.llamacpp.blob import FileState, build_file
from unspoken.engines.llamacpp.parse import parse
from unspoken.engines.protocol import Engine, Limits, Piece, Prompt, Turn
from unspoken.errors import CacheFileError, IncompatibleCache

if TYPE_CHECKING:
    from unspoken.engines.llamacpp.engine import LlamaCppEngine

SOURCE = "The northern station is run by Marta, and the copper mill belongs to Edgar."
QUESTION = " Who runs the station?"
PromptOf = Callable[[Engine, str], Prompt]
Llama = Callable[..., "LlamaCppEngine"]


def _saved(engine: LlamaCppEngine, prompt: Prompt, tokens: Sequence[int] | None = None, start: int = 0) -> bytes:
    """What llama.cpp writes of a sequence that has read a prompt, with these tokens or the prompt's."""
    engine.prefill(prompt, start=start)
    blob = parse(engine._context.save(0))
    return build_file(FileState(np.array(tokens or prompt.token_ids, np.int32), blob)).tobytes()


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
def test_an_adopted_state_goes_on_as_the_sequence_it_was_saved_from(
    tiny_llama: Llama, content: PromptOf, kv_type: str
) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    engine = tiny_llama("llama", kv_type, head_dim=64)
    source, question = content(engine, SOURCE), content(engine, QUESTION)
    kept = engine.prefill(source)
    adopted = adopt(engine, _saved(engine, source))
    assert adopted.manifest.token_ids == source.token_ids
    assert adopted.manifest.engines() == {"llamacpp"}
    one, other = (engine.generate([Turn(question, past)], Limits(6))[0] for past in (kept, adopted))
    assert one.token_ids == other.token_ids
    assert np.array_equal(one.first_logprobs.numpy(), other.first_logprobs.numpy())


def test_the_record_llama_server_keeps_in_the_place_of_tokens_is_read(tiny_llama: Llama, content: PromptOf) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    engine = tiny_llama()
    source = content(engine, SOURCE)
    ids = source.token_ids
    assert adopt(engine, _saved(engine, source, [-1, 1, len(ids), *ids, 0])).manifest.token_ids == ids


def test_a_state_of_another_model_of_the_same_shape_is_refused(tiny_llama: Llama, content: PromptOf) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    mine, foreign = tiny_llama(), tiny_llama(seed=1)
    with pytest.raises(IncompatibleCache, match=r"was not made by .* have a cosine of") as caught:
        adopt(mine, _saved(foreign, content(foreign, SOURCE)))
    assert "--kv-type" in caught.value.hint


def test_a_state_with_the_tokens_of_another_text_is_refused(tiny_llama: Llama, content: PromptOf) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    engine = tiny_llama()
    source = content(engine, SOURCE)
    with pytest.raises(IncompatibleCache, match="was not made by"):
        adopt(engine, _saved(engine, source, source.token_ids[::-1]))


def test_a_state_of_another_type_is_refused(tiny_llama: Llama, content: PromptOf) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    wide, narrow = tiny_llama(), tiny_llama("llama", "f16")
    with pytest.raises(IncompatibleCache, match="type of keys f16, expected f32"):
        adopt(wide, _saved(narrow, content(narrow, SOURCE)))


def test_a_state_that_cannot_be_checked_is_refused(tiny_llama: Llama, content: PromptOf) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    engine = tiny_llama()
    source = content(engine, SOURCE)
    for tokens, reason in (
        (source.token_ids[:-1], "tokens for"),
        ((-1, 1, len(source.token_ids), *source.token_ids[:-1], -7), "negative token"),
        ((-1, 2, 3), "negative token"),
    ):
        with pytest.raises(CacheFileError, match=reason):
            adopt(engine, _saved(engine, source, tokens))


def test_a_state_from_further_on_is_checked_where_it_stands(tiny_llama: Llama, content: PromptOf) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    engine = tiny_llama()
    adopted = adopt(engine, _saved(engine, content(engine, SOURCE), start=9))
    assert adopted.positions[0] == 9
    blob = parse(engine._context.save(0))
    gapped = FileState(
        np.array(content(engine, SOURCE).token_ids, np.int32)[: len(blob.positions)],
        type(blob)(blob.positions * 2, blob.keys, blob.values, blob.key_type, blob.value_type, blob.rotations),
    )
    with pytest.raises(CacheFileError, match="gaps or out of order"):
        adopt(engine, build_file(gapped).tobytes())


@pytest.mark.parametrize("cut", [0, 3, 11, 100, -1])
def test_a_truncated_file_is_refused(tiny_llama: Llama, content: PromptOf, cut: int) -> None:
    from unspoken.engines.llamacpp.adopt import adopt

    engine = tiny_llama()
    with pytest.raises(CacheFileError, match=r"llama\.cpp state"):
        adopt(engine, _saved(engine, content(engine, SOURCE))[:cut])


def test_the_command_writes_a_cache_file_that_opens(
    tiny_gguf: Callable[..., Path], tiny_llama: Llama, content: PromptOf, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from click.testing import CliRunner

    from unspoken.cachefile import read_cache
    from unspoken.cli import cli

    monkeypatch.setenv("UNSPOKEN_HOME", str(tmp_path / "home"))
    engine = tiny_llama()
    state, out = tmp_path / "slot.bin", tmp_path / "slot.kv.safetensors"
    state.write_bytes(_saved(engine, content(engine, SOURCE)))
    arguments = ["adopt", str(state), "--out", str(out), "--model", str(tiny_gguf()), "--kv-type", "f32", "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert read_cache(out).manifest.token_ids == content(engine, SOURCE).token_ids
    assert (
        Prompt((Piece("content", read_cache(out).manifest.token_ids or ()),)).spans() == read_cache(out).manifest.spans
    )
