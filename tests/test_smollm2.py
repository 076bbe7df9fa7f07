"""The promises that matter, on a real model: SmolLM2-135M from PyPI, float32, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unspoken.cachefile import read_cache, write_cache
from unspoken.channels.kv import content_columns
from unspoken.channels.text import content
from unspoken.engines.gate import measure
from unspoken.engines.protocol import Engine, Limits, Turn
from unspoken.session import Agent, Session
from unspoken.transforms.rope import Move, RemoveRope

pytestmark = pytest.mark.model
REPORT = (
    "The council met on Tuesday. The northern station is run by Marta. The copper mill belongs to Edgar. "
    "The old ferry is steered by Oscar. Nothing else was decided."
)
QUESTION = "Who runs the northern station?"


@pytest.fixture(scope="session")
def engine() -> Engine:
    from unspoken import load_model

    return load_model("smollm2-135m")


@pytest.fixture(scope="session")
def lyra(engine: Engine) -> Agent:
    return Agent("lyra", engine)


def test_the_gate_passes_within_the_float32_bound(engine: Engine) -> None:
    result = measure(engine)
    assert result.passed
    assert result.bound == 1e-4
    assert set(result.checks) == {"continue", "moved", "stored", "causal"}


def test_continuing_from_a_cache_equals_joint_prefill(engine: Engine, lyra: Agent) -> None:
    source, question = lyra.frame.before + content(lyra, REPORT), lyra.asked(QUESTION)
    cache = engine.prefill(source)
    joint = engine.logits(source + question)[len(source.token_ids) :]
    torch.testing.assert_close(engine.logits(question, cache), joint, atol=1e-4, rtol=0)
    whole, split = engine.generate([Turn(source + question), Turn(question, cache)], Limits(24))
    assert whole.token_ids == split.token_ids
    assert len(split.token_ids) > 3


def test_a_stored_cache_continues_the_same_in_a_second_process(engine: Engine, lyra: Agent, tmp_path: Path) -> None:
    cache = lyra.read(REPORT).cache
    path = tmp_path / "whole.kv.safetensors"
    write_cache(cache, path)
    expected = lyra.ask_cache(QUESTION, cache, new_tokens=16)
    command = [sys.executable, "-m", "unspoken", "ask", QUESTION, "--cache", str(path), "--tokens", "16", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["answer"] == expected.text
    assert answer["channel"] == "kv-continue"
    assert answer["lossy"] is False
    torch.testing.assert_close(
        engine.logits(lyra.asked(QUESTION), read_cache(path)),
        engine.logits(lyra.asked(QUESTION), cache),
        atol=0,
        rtol=0,
    )


def test_moved_columns_equal_a_prefill_at_the_new_positions(engine: Engine, lyra: Agent) -> None:
    text = content(lyra, REPORT)
    # Float32 angles round: at position 4,000 the model itself no longer sees the same distances quite alike.
    for start, keys, logits in ((1, 1e-4, 1e-4), (100, 1e-4, 1e-4), (1000, 1e-3, 1e-4), (4000, 5e-3, 5e-4)):
        moved, there = Move(start)(engine.prefill(text)), engine.prefill(text, start=start)
        assert torch.equal(moved.positions, there.positions)
        free_moved, free_there = RemoveRope()(moved), RemoveRope()(there)
        for left, right in zip((*moved.layers, *free_moved.layers), (*there.layers, *free_there.layers), strict=True):
            torch.testing.assert_close(left.keys, right.keys, atol=keys, rtol=0)
            torch.testing.assert_close(left.values, right.values, atol=keys, rtol=0)
        question = lyra.asked(QUESTION)
        torch.testing.assert_close(engine.logits(question, moved), engine.logits(question, there), atol=logits, rtol=0)


def test_many_receivers_of_one_cache_answer_as_with_a_fresh_one(engine: Engine, lyra: Agent) -> None:
    shared = content_columns(lyra.read(REPORT).cache)
    before = [layer.keys.clone() for layer in shared.layers]
    questions = [QUESTION, "Who steers the old ferry?", "To whom does the copper mill belong?"]
    forked = [Agent(f"vera{i}", engine).ask_cache(question, shared).text for i, question in enumerate(questions)]
    fresh = [
        Agent(f"vera{i}", engine).ask_cache(question, content_columns(Agent("lyra", engine).read(REPORT).cache)).text
        for i, question in enumerate(questions)
    ]
    assert forked == fresh
    assert all(torch.equal(layer.keys, kept) for layer, kept in zip(shared.layers, before, strict=True))


def test_the_six_line_example_answers_from_the_senders_text_alone(engine: Engine) -> None:
    lyra, vera = Agent("lyra", engine), Agent("vera", engine)
    talk = Session(lyra, vera, channel="kv")
    reply = talk.ask("vera", QUESTION, about=REPORT)
    assert "Marta" in reply.text
    assert reply.delivery.tokens_skipped == len(engine.encode(REPORT))
    assert "Marta" not in Session(lyra, vera, channel="none").ask("vera", QUESTION, about=REPORT).text
