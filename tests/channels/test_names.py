"""A channel has one name: in Python, in YAML, on the command line and in what it delivers."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from unspoken.channels import CHANNELS
from unspoken.channels.activation import Activation
from unspoken.channels.compose import Compose
from unspoken.channels.embedding import Embedding
from unspoken.channels.finetune import FineTune
from unspoken.channels.kv import Continue, Insert
from unspoken.channels.latent import Latent
from unspoken.channels.layers import Layers
from unspoken.channels.names import build_channel, labelled, parse_channel
from unspoken.channels.need import Need
from unspoken.channels.protocol import Channel, Delivery, Request
from unspoken.channels.text import Text, TextAsked
from unspoken.cli import cli
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.lab.experiment import load_experiment
from unspoken.lab.runner import check
from unspoken.session import Agent

TEXTS = ("The old mill is run by Anna. It was calm.", " The inn sells silk and salt.")
QUESTION = "Who runs the old mill?"
SENDERS = ("lyra", "cc")
# What is written, and the same channel as Python makes it.
NAMED: dict[str, Channel] = {
    "text@3": Text(amount=3),
    "text-asked@3": TextAsked(amount=3),
    "kv": Insert(),
    "kv+int8": Insert(codec="int8"),
    "kv+bfloat16+blosc2": Insert(codec="bfloat16+blosc2"),
    "need@0.3": Need(amount=0.3),
    "need@0.3+int8": Need(amount=0.3, codec="int8"),
    "need:value-norm@0.3": Need(amount=0.3, variant="value-norm"),
    "need:backfill=2@0.3": Need(amount=0.3, backfill=2),
    "layers@0.7": Layers(amount=0.7),
    "layers:published@0.3": Layers(amount=0.3, variant="published"),
    "layers:alpha=0.5@0.5+int8": Layers(amount=0.5, alpha=0.5, codec="int8"),
    "layers:alpha=0@0.5": Layers(amount=0.5, alpha=0),
    "compose:concat": Compose("concat"),
    "compose:align": Compose(),
    "compose:legolink@16": Compose("legolink", amount=16),
    "compose:cacheblend@0.15": Compose("cacheblend", amount=0.15),
    "compose:blend@0.15+int8": Compose("blend", amount=0.15, codec="int8"),
    "latent@20": Latent(amount=20),
    "latent:realign@20": Latent(amount=20, variant="realign"),
    "embedding@16": Embedding(amount=16),
    "embedding:temperature=0.5@4": Embedding(amount=4, temperature=0.5),
    "activation": Activation(),
    "activation:mean@2": Activation(amount=2, variant="mean"),
    "finetune:0-1": FineTune("0-1"),
    "kv-continue+int8": Continue(codec="int8"),
}
ALONE = ("latent", "embedding", "activation", "finetune", "kv-continue")  # Take one reading.
# Other spellings of a channel lead to the one above, or to another that is its own.
SPELT = {
    "kv+bfloat16": "kv",
    "compose": "compose:align",
    "compose:variant=align": "compose:align",
    "need:attention@0.3": "need@0.3",
    "need:backfill=0:amount=0.3": "need@0.3",
    "need:backfill=2.0@0.3": "need:backfill=2@0.3",
    "need:backfill=2:value-norm@0.3": "need:value-norm:backfill=2@0.3",
    "layers:causal:alpha=1@0.7": "layers@0.7",
    "embedding:temperature=1.0@4": "embedding@4",
    "activation:replace": "activation",
}
WORDS = st.text(st.characters(exclude_characters=":@+=", exclude_categories=["Cs"]), min_size=1)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
KEYS = WORDS.filter(lambda key: key not in ("variant", "amount", "codec"))
CODECS = st.from_regex(r"[a-z0-9_]+(\+[a-z0-9]+)?", fullmatch=True)


@given(WORDS, st.none() | WORDS, st.none() | NUMBERS, st.none() | CODECS, st.dictionaries(KEYS, WORDS | NUMBERS))
def test_a_name_with_any_options_is_read_as_what_was_written(
    name: str, variant: str | None, amount: float | None, codec: str | None, others: dict[str, Any]
) -> None:
    written = labelled(name, variant=variant, amount=amount, codec=codec, **others)
    found, options = parse_channel(written)
    expected = {"variant": variant, "amount": amount, "codec": codec, **others}
    expected = {key: value for key, value in expected.items() if value is not None}
    assert found == name
    assert options.keys() == expected.keys()
    for key, value in expected.items():
        assert isinstance(options[key], str)
        assert type(value)(options[key]) == value


@given(st.text("ab1.-:@+= "))
def test_what_is_read_is_written_so_that_it_is_read_again(text: str) -> None:
    try:
        name, options = parse_channel(text)
    except UsageError:
        assert any(mark in text for mark in ":@+")
        return
    assume("=" not in options.get("variant", ""))  # `variant=a=b` alone can say that, and no channel has it.
    again = labelled(name, **options)
    assert parse_channel(again) == (name, options)
    assert labelled(name, **parse_channel(again)[1]) == again


ODD = st.sampled_from("0 1 2 0.3 -1 1e999 nan inf ² ٣ 1_0 0-1 3-1 ²-³ blend concat realign x = :".split()) | st.text()


@given(st.sampled_from(sorted(CHANNELS)), st.lists(st.tuples(st.sampled_from((":", "@", "+", ":alpha=")), ODD)))
def test_a_channel_of_any_options_is_made_or_refused(name: str, options: list[tuple[str, str]]) -> None:
    written = name + "".join(mark + value for mark, value in options)
    try:
        made = build_channel(written)
    except UsageError:
        assert options or name == "fused"  # Which fuser has to be said.
    else:
        assert isinstance(made, CHANNELS.load(name))


def send(channel: Channel, engine: TransformersEngine, name: str) -> Delivery:
    """Send two readings through a channel, or one if it takes no more."""
    read = tuple(Agent(sender, engine).read(text) for sender, text in zip(SENDERS, TEXTS, strict=True))
    readings = read[: 1 if name.startswith(ALONE) else 2]
    (delivery,) = channel.send([Request(readings, QUESTION)], Agent("vera", engine))
    return delivery


def same(left: Delivery, right: Delivery) -> None:
    """See that two deliveries leave a receiver with the same at the same cost."""
    for field in ("channel", "bytes_moved", "tokens_prefilled", "tokens_skipped", "recomputed", "message", "prompt"):
        assert getattr(left, field) == getattr(right, field), field
    assert left.past is not None
    assert right.past is not None
    for mine, other in zip(left.past.layers, right.past.layers, strict=True):
        assert torch.equal(mine.keys, other.keys)
        assert torch.equal(mine.values, other.values)
        assert torch.equal(mine.positions, other.positions)
    one, two = left.onset, right.onset
    assert (one.position, one.lookahead) == (two.position, two.lookahead)
    if one.graft is not None and two.graft is not None:
        assert (one.graft.layer, one.graft.how) == (two.graft.layer, two.graft.how)
        assert torch.equal(one.graft.residual, two.graft.residual)
    assert (one.graft is None) == (two.graft is None)


@pytest.fixture
def possible() -> Callable[[str], None]:
    """Skip a channel whose package is not installed."""
    return lambda name: None if "blosc2" not in name else pytest.importorskip("blosc2")


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_delivery_has_the_name_it_was_sent_through_and_python_makes_the_same(
    name: str, deep: TransformersEngine, possible: Callable[[str], None]
) -> None:
    possible(name)
    by_name = send(build_channel(name), deep, name)
    assert by_name.channel == name
    same(by_name, send(NAMED[name], deep, name))


def test_the_channels_compared_are_not_all_alike(deep: TransformersEngine) -> None:
    # The comparison above is of columns: two channels that move other columns must not pass it.
    plain = send(build_channel("kv"), deep, "kv")
    for other in ("kv+int8", "need@0.3", "compose:cacheblend@0.15", "compose:concat"):
        with pytest.raises(AssertionError):
            same(plain, send(build_channel(other), deep, other))


@pytest.mark.parametrize("written", sorted(SPELT))
def test_other_spellings_deliver_under_the_one_name(written: str, deep: TransformersEngine) -> None:
    name = SPELT[written]
    same(send(build_channel(written), deep, name), send(build_channel(name), deep, name))


@pytest.mark.parametrize("form", ["block", "flow"])
def test_an_experiment_takes_the_same_names(form: str, tmp_path: Path, possible: Callable[[str], None]) -> None:
    possible("blosc2")
    names, path = (*NAMED, *SPELT), tmp_path / "all.yaml"
    lines = "".join(f"\n  - {name}" for name in names) if form == "block" else f" [{', '.join(names)}]"
    path.write_text(f"name: all\nengine: fake\nitems: 4\narms:{lines}\n")
    experiment = load_experiment(path)
    assert experiment.arms == names
    check(experiment)


@pytest.fixture
def ask(deep: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Ask about the texts through a channel on the command line, on the deep model; returns what it prints as JSON."""
    files = [tmp_path / f"{sender}.txt" for sender in SENDERS]
    for file, text in zip(files, TEXTS, strict=True):
        file.write_text(text)
    monkeypatch.setattr("unspoken.api.load_gated", lambda *_: (deep, None))

    def make(name: str) -> Any:
        about = [part for file in files[: 1 if name.startswith(ALONE) else 2] for part in ("--about", str(file))]
        done = CliRunner().invoke(cli, ["ask", QUESTION, *about, "--channel", name, "--tokens", "2", "--json"])
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout)

    yield make
    gc.unfreeze()  # The program freezes what a start leaves behind; this process is not only its own.


@pytest.mark.parametrize("name", sorted(NAMED))
def test_the_command_line_takes_the_same_names(
    name: str, ask: Callable[[str], Any], deep: TransformersEngine, possible: Callable[[str], None]
) -> None:
    possible(name)
    told, sent = ask(name), send(NAMED[name], deep, name)
    assert told["channel"] == name
    assert (told["bytes_moved"], told["recomputed"]) == (sent.bytes_moved, sent.recomputed)
    assert (told["tokens_skipped"], told["message"]) == (sent.tokens_skipped, sent.message)
