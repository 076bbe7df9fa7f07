"""On a real model: a state crosses processes bit for bit, and a cache crosses engines without changing an answer."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.cachefile import read_cache, write_cache
from unspoken.engines.gate import BOUNDS, measure, measure_pair
from unspoken.engines.llamacpp.engine import LlamaCppEngine
from unspoken.engines.llamacpp.library import Library
from unspoken.engines.protocol import Engine, Limits, Loading, Piece, Prompt, Turn
from unspoken.manifest import compare
from unspoken.transforms.rope import Move

from .widened import widened

pytestmark = pytest.mark.model
REPORT = (
    "The council met on Tuesday. The northern station is run by Marta. The copper mill belongs to Edgar. "
    "The old ferry is steered by Oscar. Nothing else was decided. "
)
STORY = (
    "Anna walked along the river until she found the old mill, whose wheel had not turned for years. A miller's cat "
    "slept on the sill, and the door stood open. Inside there was flour on the floor, and in the flour the prints of "
    "small feet that led to the stairs and up into the dark. "
)
# Of 1 to 196 tokens.
SOURCES = (
    "Paris", "Water boils at", "The capital of France is", "def add(a, b):\n    return", "1, 1, 2, 3, 5, 8,",
    REPORT, STORY, STORY + REPORT, REPORT * 4, STORY * 3,
)  # fmt: skip
GOING_ON = " In short, "
QUESTION = "Who runs the northern station?"
# What a second process does with a cache file: the same as this one, or it prints something else.
SECOND = f"""
import hashlib, sys
from unspoken import load_model
from unspoken.cachefile import read_cache
from unspoken.engines.protocol import Limits, Piece, Prompt, Turn

engine = load_model("smollm2-135m", engine="llamacpp", threads=1, kv_type=sys.argv[2])
cache = read_cache(sys.argv[1])
question = Prompt((Piece("content", engine.encode({GOING_ON!r})),))
logits = engine.logits(question, cache)
print(hashlib.sha256(logits.numpy().tobytes()).hexdigest())
print(*engine.generate([Turn(question, cache)], Limits(16))[0].token_ids)
"""


@pytest.fixture(scope="module")
def quantised(libllama: Library) -> Iterator[Engine]:
    """SmolLM2 as it is packed, in Q4_1, with float16 cells."""
    from unspoken import load_model

    engine = load_model("smollm2-135m", engine="llamacpp", threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def wide(libllama: Library) -> Iterator[LlamaCppEngine]:
    """SmolLM2 with float32 weights and float16 cells, in llama.cpp."""
    from unspoken.api import open_model
    from unspoken.modelstore import home, resolve_gguf

    path = widened(resolve_gguf("smollm2-135m")[0], home() / "tests")
    engine = open_model(str(path), "llamacpp", Loading(threads=1, context=2048))
    assert isinstance(engine, LlamaCppEngine)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference() -> Engine:
    """SmolLM2 with float32 weights in transformers."""
    from unspoken.api import open_model

    return open_model("smollm2-135m")


def prompt(engine: Engine, text: str) -> Prompt:
    """A text as content."""
    return Prompt((Piece("content", engine.encode(text)),))


def apart(left: Tensor, right: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((left - right).abs().max())


def similarity(left: KVCache, right: KVCache, part: str) -> list[float]:
    """For each layer the least cosine of a column's keys or values, over the columns."""
    found = []
    for one, other in zip(left.layers, right.layers, strict=True):
        mine, theirs = (getattr(each, part).double().transpose(0, 1).flatten(1) for each in (one, other))
        found.append(float(torch.cosine_similarity(mine, theirs, dim=1).min()))
    return found


def test_the_gate_passes_with_quantised_weights_and_with_wide_ones(quantised: Engine, wide: Engine) -> None:
    for engine, precision in ((quantised, "ggml-quantised"), (wide, "ggml-f16")):
        found = measure(engine)
        assert found.passed
        assert engine.precision == precision
        assert found.bound == BOUNDS[precision]
        # Reading, keeping and going on is exact; what rounding does shows in other positions alone.
        assert max(found.checks[name] for name in ("continue", "stored", "causal")) < 0.1 * found.bound


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_stored_state_goes_on_the_same_bit_for_bit_in_a_second_process(
    kv_type: str, quantised: Engine, tmp_path: Path
) -> None:
    from unspoken import load_model

    engine = (
        quantised if kv_type == "f16" else load_model("smollm2-135m", engine="llamacpp", threads=1, kv_type=kv_type)
    )
    assert isinstance(engine, LlamaCppEngine)
    source, question = prompt(engine, REPORT), prompt(engine, GOING_ON)
    cache = engine.prefill(source)
    path = tmp_path / "whole.kv.safetensors"
    write_cache(cache, path)
    again = read_cache(path)
    state = engine._translation.state(cache)
    assert engine._translation.state(again).tobytes() == state.tobytes()
    expected = engine.logits(question, cache)
    assert torch.equal(engine.logits(question, again), expected)
    answer = engine.generate([Turn(question, cache)], Limits(16))[0].token_ids
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SECOND, str(path), kv_type], capture_output=True, text=True, check=True, env=environment
    )
    digest, tokens = done.stdout.strip().splitlines()
    assert tokens == " ".join(map(str, answer))
    assert digest == hashlib.sha256(expected.numpy().tobytes()).hexdigest()
    if engine is not quantised:
        engine.close()


def test_both_engines_describe_the_same_model(quantised: Engine, wide: Engine, reference: Engine) -> None:
    assert compare(quantised.spec, reference.spec) == []
    assert compare(wide.spec, reference.spec) == []
    for text in (REPORT, "naïve 東京 🙂\n\n", "<|im_start|>user\n"):
        assert wide.encode(text) == reference.encode(text)
        assert wide.decode(wide.encode(text)) == reference.decode(reference.encode(text))
    assert wide.frame("Be brief.") == reference.frame("Be brief.")


def test_keys_and_values_of_every_layer_are_those_of_transformers(wide: Engine, reference: Engine) -> None:
    for text in SOURCES[4:8]:
        source = prompt(reference, text)
        mine, theirs = wide.prefill(source), reference.prefill(source)
        for part in ("keys", "values"):
            found = similarity(mine, theirs, part)
            assert len(found) == 30
            # Measured over ten texts: at least 1 - 7e-7, with float16 cells as with float32.
            assert min(found) > 1 - 1e-5
        # The bound means something: columns beside each other in the text are far from that.
        assert max(similarity(mine.slice(1, mine.columns), theirs.slice(0, theirs.columns - 1), "values")) < 0.9


def test_a_pair_of_engines_passes_both_ways_within_the_bounds_of_float16(wide: Engine, reference: Engine) -> None:
    for sender, receiver in ((wide, reference), (reference, wide)):
        found = measure_pair(sender, receiver)
        assert found.passed
        assert found.bound == BOUNDS["ggml-f16"]


def test_a_cache_crosses_engines_both_ways_without_changing_a_token(wide: Engine, reference: Engine) -> None:
    question, limits = prompt(reference, GOING_ON), Limits(32)
    sources = [prompt(reference, text) for text in SOURCES]
    assert len({len(source.token_ids) for source in sources}) == 10

    def answers(engine: Engine, turns: Sequence[Turn]) -> list[tuple[int, ...]]:
        return [made.token_ids for made in engine.generate(list(turns), limits)]

    theirs, ours = [reference.prefill(each) for each in sources], [wide.prefill(each) for each in sources]
    expected = answers(reference, [Turn(source + question) for source in sources])
    assert answers(wide, [Turn(question, cache) for cache in theirs]) == expected
    assert answers(reference, [Turn(question, cache) for cache in ours]) == expected
    assert sum(map(len, expected)) > 250
    assert len(set(expected)) == 10
    # And back again: out of transformers, into llama.cpp, out of it and into transformers.
    for source, cache in list(zip(sources, theirs, strict=True))[5:6]:
        there = wide.prefill(question, cache)
        whole = reference.prefill(source + question)
        assert there.positions.tolist() == whole.positions.tolist()
        assert there.manifest.engines() == {"llamacpp", "transformers"}
        assert apart(reference.logits(question, there), reference.logits(question, whole)) < BOUNDS["ggml-f16"]


def test_a_moved_cache_of_the_other_engine_is_one_read_there(wide: Engine, reference: Engine) -> None:
    source, question = prompt(reference, REPORT), prompt(reference, GOING_ON)
    for sender, receiver in ((wide, reference), (reference, wide)):
        moved, there = Move(500)(sender.prefill(source)), receiver.prefill(source, start=500)
        expected = receiver.logits(question, there)
        assert apart(receiver.logits(question, moved), expected) < BOUNDS["ggml-f16"]
        assert apart(receiver.logits(question), expected) > 10 * BOUNDS["ggml-f16"]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report as a text file."""
    path = tmp_path_factory.mktemp("documents") / "report.txt"
    path.write_text(REPORT)
    return path


def unspoken(*arguments: object) -> Any:
    """Run the program in a process of its own and return what it printed as JSON."""
    command = [sys.executable, "-m", "unspoken", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("sender", "receiver"), [("transformers", "llamacpp"), ("llamacpp", "transformers")])
def test_one_cache_file_opens_in_both_engines_through_the_command_line(
    sender: str, receiver: str, libllama: Library, document: Path, tmp_path: Path
) -> None:
    path = tmp_path / "whole.kv.safetensors"
    captured = unspoken("capture", document, "--engine", sender, "--whole", "--out", path)
    assert captured["mode"] == "continue"
    assert read_cache(path).manifest.engines() == {sender}
    answer = unspoken("ask", QUESTION, "--engine", receiver, "--cache", path, "--tokens", 12)
    assert "Marta" in answer["answer"]
    assert answer["channel"] == "kv-continue"
    assert answer["tokens_skipped"] == captured["columns"]
    assert next(step["args"]["engine"] for step in answer["lineage"] if step["op"] == "prefill") == sender
