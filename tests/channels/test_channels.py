"""Every registered channel delivers what it says, on the fake engine: a new channel is tested by existing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unspoken.channels import CHANNELS
from unspoken.channels.kv import content_columns, received, wire_bytes
from unspoken.channels.names import build_channel, parse_channel
from unspoken.channels.protocol import Delivery, Reading, Request
from unspoken.channels.text import UNCAPPED_TOKENS
from unspoken.engines.fake import FakeEngine
from unspoken.engines.protocol import Generation, Limits, Turn
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, UsageError
from unspoken.session import Agent
from unspoken.transforms.cast import Cast
from unspoken.transforms.place import place, place_behind
from unspoken.transforms.rope import Move, RemoveRope

SOURCE = "The old mill is run by Anna. The new mill is run by Bob. It was a calm week."
QUESTION = "Who runs the new mill?"
SECRET = "The password of the sender is swordfish."
# Every registered channel with what the receiver of the fake engine can answer through it.
ANSWERS = {"none": "unknown", "full-text": "Bob", "text": "Bob", "text-asked": "Bob", "kv": "Bob", "kv-continue": "Bob"}


@pytest.fixture
def sender(fake: FakeEngine) -> Agent:
    """An agent whose system prompt holds a secret."""
    return Agent("lyra", fake, SECRET)


@pytest.fixture
def receiver(fake: FakeEngine) -> Agent:
    """Another agent on the same model, with a longer card."""
    return Agent("vera", fake, "You are Vera. You answer in one word and you never guess.")


@pytest.fixture
def send(sender: Agent, receiver: Agent) -> Callable[..., Delivery]:
    """Send the source through a channel of a name and return the one delivery."""

    def once(channel: str, question: str = QUESTION) -> Delivery:
        (delivery,) = build_channel(channel).send([Request((sender.read(SOURCE),), question)], receiver)
        return delivery

    return once


def _answer(receiver: Agent, delivery: Delivery) -> Any:
    (reply,) = receiver.answer([QUESTION], [delivery], Limits())
    return reply


# Channels that need more of an engine than the fake one shows, or whose name alone says too little; each has a file.
ELSEWHERE = {"compose", "need", "layers", "latent", "embedding", "activation", "finetune", "fused"}


def test_every_registered_channel_is_tested() -> None:
    assert set(CHANNELS) == set(ANSWERS) | ELSEWHERE
    for name in ELSEWHERE:
        assert (Path(__file__).parent / f"test_{name}.py").exists()


@pytest.mark.parametrize("channel", sorted(ANSWERS))
def test_receiver_answers_from_what_was_delivered(channel: str, send: Callable[..., Delivery], receiver: Agent) -> None:
    delivery = send(channel)
    reply = _answer(receiver, delivery)
    assert delivery.channel == channel
    assert reply.text == ANSWERS[channel]
    # The question is read by the receiver in any case, and so is what the delivery left to be read.
    asked = len(receiver.asked(QUESTION).token_ids) + len(delivery.prompt.token_ids)
    assert reply.delivery.tokens_prefilled == delivery.tokens_prefilled + asked
    assert delivery.peak_rss_bytes > 0
    assert reply.delivery.seconds.total >= delivery.seconds.total >= 0
    assert reply.delivery.seconds.first_token > 0


@pytest.mark.parametrize("channel", sorted(ANSWERS))
def test_requests_about_one_reading_get_one_delivery_each(channel: str, sender: Agent, receiver: Agent) -> None:
    one, other = sender.read(SOURCE), sender.read("The inn is painted red.")
    requests = [
        Request((one,), QUESTION),
        Request((other,), "What colour is the inn?"),
        Request((one,), "Who runs the old mill?"),
    ]
    deliveries = build_channel(channel).send(requests, receiver)
    assert len(deliveries) == 3
    if channel != "text-asked":
        # The work for a reading is done once, however many questions there are.
        assert deliveries[0] is deliveries[2]
    replies = receiver.answer([each.question for each in requests], deliveries, Limits())
    expected = ["unknown"] * 3 if channel == "none" else ["Bob", "red", "Anna"]
    assert [reply.text for reply in replies] == expected


@pytest.mark.parametrize("channel", sorted(ANSWERS))
def test_what_the_sender_holds_is_left_as_it_was(channel: str, sender: Agent, receiver: Agent) -> None:
    reading = sender.read(SOURCE)
    before = [layer.keys.clone() for layer in reading.cache.layers]
    prefix = [layer.keys.clone() for layer in receiver.prefix.layers]
    delivery = build_channel(channel).send([Request((reading,), QUESTION)], receiver)[0]
    _answer(receiver, delivery)
    assert all(torch.equal(layer.keys, old) for layer, old in zip(reading.cache.layers, before, strict=True))
    assert all(torch.equal(layer.keys, old) for layer, old in zip(receiver.prefix.layers, prefix, strict=True))


def test_none_delivers_nothing(send: Callable[..., Delivery], receiver: Agent) -> None:
    delivery = send("none")
    assert (delivery.bytes_moved, delivery.tokens_prefilled, delivery.tokens_skipped) == (0, 0, 0)
    assert delivery.past is receiver.prefix
    assert delivery.seconds.total == 0


def test_full_text_is_the_receivers_own_reading(send: Callable[..., Delivery], receiver: Agent) -> None:
    delivery, own = send("full-text"), receiver.read(SOURCE).cache
    assert delivery.past is not None
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(delivery.past.layers, own.layers, strict=True))
    assert (delivery.bytes_moved, delivery.tokens_prefilled, delivery.tokens_skipped) == (len(SOURCE), len(SOURCE), 0)
    assert not delivery.lossy
    assert delivery.message == SOURCE


def test_text_is_what_the_sender_wrote_up_to_the_cap(send: Callable[..., Delivery], receiver: Agent) -> None:
    short, whole = send("text@24"), send("text")
    # The fake has one token for each byte and writes down what it sees.
    assert short.message == SOURCE[:24]
    assert (short.bytes_moved, short.tokens_prefilled, short.tokens_skipped) == (24, 24, 0)
    assert (short.channel, whole.channel) == ("text@24", "text")
    assert whole.message == SOURCE
    assert _answer(receiver, short).text != "Bob"
    assert short.lossy
    assert whole.lossy
    assert short.seconds.capture > 0
    assert short.seconds.transform > 0


@pytest.mark.parametrize("channel", ["text", "text-asked"])
def test_a_shorter_message_is_cut_from_a_longer_one_and_not_written_again(
    channel: str, sender: Agent, receiver: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, fresh = sender.read(SOURCE), sender.read(SOURCE)
    calls: list[int] = []
    generate = sender.engine.generate

    def counted(turns: Sequence[Turn], limits: Limits, *rest: Any) -> tuple[Generation, ...]:
        calls.append(limits.new_tokens)
        return generate(turns, limits, *rest)

    monkeypatch.setattr(sender.engine, "generate", counted)

    def sent(name: str, of: Reading) -> Delivery:
        return build_channel(name).send([Request((of,), QUESTION)], receiver)[0]

    # Growing, the message is written anew; once it came to its end, never again.
    sizes = ["@8", "@16", "", "@16", "@8", "@190"]
    found = [sent(channel + size, reading) for size in sizes]
    assert calls == [8, 16, UNCAPPED_TOKENS]
    anew = [sent(channel + size, replace(fresh, drafts={})) for size in sizes]
    assert [each.message for each in found] == [each.message for each in anew]
    # What is cut from a longer message costs its share of the longer one's time.
    whole, cut = found[2], found[3]
    share = 16 / len(whole.message or "")
    assert cut.seconds.transform == pytest.approx(whole.seconds.transform * share)


def test_text_without_a_cap_still_ends(sender: Agent, receiver: Agent) -> None:
    reading = sender.read("The mill turns. " * 40)
    delivery = build_channel("text").send([Request((reading,), QUESTION)], receiver)[0]
    assert len(sender.engine.encode(delivery.message or "")) == UNCAPPED_TOKENS


def test_text_asked_is_written_for_the_question(send: Callable[..., Delivery]) -> None:
    first, second = send("text-asked"), send("text-asked@30", "Who runs the old mill?")
    assert first.message == "The new mill is run by Bob."
    assert second.message == "The old mill is run by Anna."
    assert (first.channel, second.channel) == ("text-asked", "text-asked@30")
    assert first.bytes_moved == len(first.prompt.token_ids) == len("The new mill is run by Bob.")
    assert (first.tokens_prefilled, first.tokens_skipped) == (0, 0)


@pytest.mark.parametrize(("channel", "width"), [("kv", 2), ("kv+float16", 2), ("kv+float32", 4)])
def test_kv_moves_the_content_columns_and_their_positions(
    send: Callable[..., Delivery], receiver: Agent, channel: str, width: int
) -> None:
    delivery = send(channel)
    columns = len(SOURCE)
    per_column = receiver.engine.spec.elements_per_column() * width
    assert delivery.channel == channel
    assert delivery.bytes_moved == columns * per_column + columns * 4
    assert (delivery.tokens_prefilled, delivery.tokens_skipped) == (0, columns)
    assert delivery.lossy
    assert delivery.message is None


def test_kv_brings_content_and_nothing_else_of_the_sender(
    send: Callable[..., Delivery], receiver: Agent, fake: FakeEngine
) -> None:
    past = send("kv").past
    assert past is not None
    ids = past.manifest.token_ids
    assert ids == receiver.prefix.manifest.token_ids + fake.encode(SOURCE)  # type: ignore[operator]
    assert fake._readable(past) == list(ids)
    assert "swordfish" not in fake.decode(ids)
    assert "swordfish" in fake.decode(send("kv-continue").past.manifest.token_ids)  # type: ignore[arg-type,union-attr]


def test_kv_stands_right_after_the_receivers_prefix_with_one_sink(
    send: Callable[..., Delivery], receiver: Agent
) -> None:
    past = send("kv").past
    assert past is not None
    assert all(layer.positions.tolist() == list(range(past.columns)) for layer in past.layers)
    assert [span.kind for span in past.manifest.spans].count("sink") == 1
    content = next(span for span in past.manifest.spans if span.kind == "content")
    assert (content.start, content.stop) == (receiver.prefix.columns, past.columns)


def test_kv_is_what_the_receiver_would_have_read_up_to_the_type_on_the_wire(
    send: Callable[..., Delivery], receiver: Agent
) -> None:
    # The fake's columns do not depend on what stands before them, so nothing else can differ.
    own = receiver.read(SOURCE).cache
    for channel, bound in (("kv+float32", 1e-5), ("kv", 2**-7)):
        past = send(channel).past
        assert past is not None
        for mine, other in zip(past.layers, own.layers, strict=True):
            assert torch.equal(mine.values, other.values)
            assert torch.allclose(mine.keys, other.keys, atol=bound)


def test_kv_continue_hands_over_the_whole_cache(sender: Agent, receiver: Agent) -> None:
    reading = sender.read(SOURCE)
    delivery = build_channel("kv-continue").send([Request((reading,), QUESTION)], receiver)[0]
    assert delivery.past is reading.cache
    assert delivery.tokens_skipped == reading.cache.columns
    assert delivery.bytes_moved == wire_bytes(reading.cache) == reading.cache.bytes_held() + 4 * reading.cache.columns
    assert not delivery.lossy


def test_kv_continue_is_exact_on_a_real_model(engine: TransformersEngine) -> None:
    sender, receiver = Agent("lyra", engine), Agent("vera", engine)
    reading = sender.read("Anna runs it.")
    continued, joint = (
        party.answer([QUESTION], [build_channel(name).send([Request((reading,), QUESTION)], party)[0]], Limits(4))[0]
        for party, name in ((receiver, "kv-continue"), (sender, "full-text"))
    )
    assert continued.generation.token_ids == joint.generation.token_ids
    assert torch.allclose(continued.generation.first_logprobs, joint.generation.first_logprobs, atol=1e-4)


def test_segment_is_position_free_on_the_wire_and_turned_once(sender: Agent, receiver: Agent) -> None:
    segment = content_columns(sender.read(SOURCE).cache)
    assert segment.manifest.rope == "removed"
    standing = place(segment, receiver.prefix)
    assert standing.manifest.rope == "applied"
    assert standing.positions[0] == receiver.prefix.next_position
    assert [step.op for step in standing.manifest.lineage].count("rope.apply") == 1


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_placing_in_one_pass_equals_placing_step_by_step(wire: str, dtype: str) -> None:
    engine = FakeEngine(dtype=dtype)
    prefix = Agent("vera", engine).prefix
    free = Cast(wire)(content_columns(Agent("lyra", engine).read(SOURCE).cache))
    gapped = free.slice(3, 9).concat(free.slice(20, 31))
    for segment in (free, gapped, Move(0)(free), RemoveRope()(Agent("lyra", engine).read(SOURCE).cache)):
        slow, fast = prefix.concat(place(segment, prefix)), place_behind(prefix, segment)
        assert fast.manifest == slow.manifest
        for mine, other in zip(fast.layers, slow.layers, strict=True):
            assert torch.equal(mine.keys, other.keys)
            assert torch.equal(mine.values, other.values)
            assert torch.equal(mine.positions, other.positions)


def test_a_cache_from_elsewhere_is_inserted_if_position_free_and_continued_otherwise(
    sender: Agent, receiver: Agent
) -> None:
    cache = sender.read(SOURCE).cache
    inserted, continued = received(content_columns(cache), receiver), received(cache, receiver)
    assert (inserted.channel, continued.channel) == ("kv", "kv-continue")
    assert inserted.past is not None
    assert inserted.past.columns == receiver.prefix.columns + len(SOURCE)
    assert _answer(receiver, inserted).text == _answer(receiver, continued).text == "Bob"


@pytest.mark.parametrize("channel", ["kv", "kv-continue"])
def test_caches_of_another_model_are_refused(channel: str, sender: Agent) -> None:
    stranger = Agent("vera", FakeEngine(seed=1))
    reading = sender.read(SOURCE)
    with pytest.raises(IncompatibleCache, match="weights"):
        build_channel(channel).send([Request((reading,), QUESTION)], stranger)
    for cache in (reading.cache, RemoveRope()(reading.cache)):
        with pytest.raises(IncompatibleCache, match="weights"):
            received(cache, stranger)


def test_text_channels_cross_models(sender: Agent) -> None:
    stranger = Agent("vera", FakeEngine(seed=1))
    for channel in ("full-text", "text", "text-asked"):
        delivery = build_channel(channel).send([Request((sender.read(SOURCE),), QUESTION)], stranger)[0]
        assert _answer(stranger, delivery).text == "Bob"


def test_gaps_in_a_reading_are_kept_on_the_way(sender: Agent, receiver: Agent) -> None:
    cache = content_columns(sender.read(SOURCE).cache)
    gapped = cache.slice(0, 5).concat(cache.slice(9, 12))
    positions = place(gapped, receiver.prefix).positions
    assert (positions - receiver.prefix.next_position).tolist() == [0, 1, 2, 3, 4, 9, 10, 11]
    assert place(gapped, Move(100)(receiver.prefix)).positions[0] == 100 + receiver.prefix.columns


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("kv", ("kv", {})),
        ("text@32", ("text", {"amount": "32"})),
        ("kv+float32", ("kv", {"codec": "float32"})),
        ("x@3+int8", ("x", {"amount": "3", "codec": "int8"})),
        ("kv+int8+blosc2", ("kv", {"codec": "int8+blosc2"})),
        ("compose:blend@0.15", ("compose", {"variant": "blend", "amount": "0.15"})),
        (
            "need:value-norm:backfill=2@0.3+int8",
            ("need", {"variant": "value-norm", "backfill": "2", "amount": "0.3", "codec": "int8"}),
        ),
    ],
)
def test_a_channels_name_carries_its_options(text: str, parsed: tuple[str, dict[str, Any]]) -> None:
    assert parse_channel(text) == parsed


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("none@3", "'none' has no option 'amount'"),
        ("full-text+float32", "'full-text' has no option 'codec'"),
        ("kv@3", "'kv' has no option 'amount'"),
        ("text+float32", "'text' has no option 'codec'"),
        ("kv:fast", "'kv' has no option 'variant'"),
        ("kv+int3", "Did you mean 'int"),
        ("kv-continue+int3", "Did you mean 'int"),
        ("text@zero", "'zero' is no number"),
        ("text@0", "'0' is no number"),
        ("text-asked@-1", "'-1' is no number"),
        ("text@1.5", "'1.5' is no number"),
        ("text@nan", "'nan' is no number"),
        ("kv+", "ends where an option should follow"),
        ("text@", "ends where an option should follow"),
        ("compose:", "ends where an option should follow"),
        ("compose:blend=", "ends where an option should follow"),
        ("compose:blend:align", "two options 'variant'"),
        ("compose:glue", "no way 'glue' to compose"),
        ("compose:align@3", "takes no amount"),
        ("compose:blend@1.5", "'1.5' is no share"),
        ("compose:blend@-1", "'-1' is no share"),
        ("compose:legolink@0.5", "'0.5' is no number"),
        ("kv-continu", "Did you mean 'kv-continue'"),
        ("telepathy", "no channel named 'telepathy'"),
    ],
)
def test_unknown_channels_and_options_are_refused(channel: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_channel(channel)
