"""Between different models: the fuser's columns stand where the receiver's own would, and cost what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
import torch
from torch import Tensor, nn

from unspoken.cache import KVCache
from unspoken.channels.fused import Fused, sent_rows
from unspoken.channels.kv import content_columns
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Delivery
from unspoken.channels.text import content
from unspoken.engines.fake import FakeEngine
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import IncompatibleCache, StorageError, UsageError
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.pair import Pair
from unspoken.fusers.protocol import Enriched, Enricher
from unspoken.fusers.rows import as_cache, as_rows
from unspoken.manifest import Step
from unspoken.session import Agent
from unspoken.transforms.place import place_behind

SOURCE = "The old mill is run by Anna. It was calm, even at the harbour of Zoë."
Deliver = Callable[..., Delivery]
MERGES = (("Ġ", "t"), ("h", "e"), ("Ġ", "m"), ("i", "l"), ("Ġm", "il"), ("r", "u"), ("a", "s"), ("Ġ", "A"), ("n", "n"))


@pytest.fixture(scope="module")
def reader(tiny_model: Callable[..., nn.Module]) -> TransformersEngine:
    """A model of another kind and size than the receiver, whose tokenizer makes fewer tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(first + second for first, second in MERGES)]
    raw = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=list(MERGES)))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    model = tiny_model("qwen3", seed=3, num_hidden_layers=3, num_key_value_heads=4, head_dim=8)
    return TransformersEngine(model, tokenizer, "tiny-reader")


@pytest.fixture(scope="module")
def answerer(tiny_engine: Callable[..., TransformersEngine]) -> TransformersEngine:
    """The receiver."""
    return tiny_engine("llama", num_hidden_layers=5)


def fuser_of(sender: TransformersEngine, receiver: TransformersEngine, rank: int = 6, width: int = 4) -> Bottleneck:
    """A fuser of two models with random numbers in every place."""
    fuser = Bottleneck(msgspec.to_builtins(Pair.of(sender.spec, receiver.spec)), rank, width)
    generator = torch.Generator().manual_seed(0)
    for tensor in fuser.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5)
    return fuser


@pytest.fixture
def kept(reader: TransformersEngine, answerer: TransformersEngine, tmp_path: Path) -> Path:
    """The folder of a fuser from the reader to the answerer."""
    fuser_of(reader, answerer).save_pretrained(tmp_path / "kept")
    return tmp_path / "kept"


def apart(left: KVCache, right: KVCache) -> list[float]:
    """The largest difference of keys or values in each layer."""
    return [
        max(float((a.keys - b.keys).abs().max()), float((a.values - b.values).abs().max()))
        for a, b in zip(left.layers, right.layers, strict=True)
    ]


def past_of(delivery: Delivery) -> KVCache:
    """The columns of a delivery."""
    assert delivery.past is not None
    return delivery.past


def test_the_models_are_not_alike(reader: TransformersEngine, answerer: TransformersEngine) -> None:
    assert len(reader.encode(SOURCE)) < len(answerer.encode(SOURCE))
    assert Pair.of(reader.spec, answerer.spec).sender.width != Pair.of(reader.spec, answerer.spec).receiver.width


def test_what_arrives_is_the_fusers_columns_behind_the_receivers_prefix(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver
) -> None:
    lyra, vera = Agent("lyra", reader), Agent("vera", answerer)
    delivery = deliver(f"fused:{kept}+float32", vera, (lyra, SOURCE))
    past, tokens = past_of(delivery), len(answerer.encode(SOURCE))
    with torch.no_grad():
        rows = Bottleneck.from_pretrained(kept)(sent_rows(lyra.read(SOURCE), answerer))
    wanted = place_behind(vera.prefix, as_cache(rows, answerer.spec, [], "lyra"))
    assert rows.shape == (tokens, Pair.of(reader.spec, answerer.spec).receiver.width)
    assert max(apart(past, wanted)) < 1e-5
    assert past.spec == answerer.spec
    assert past.positions.tolist() == list(range(vera.prefix.columns + tokens))
    # Neither the receiver's own columns nor nothing.
    own = answerer.prefill(content(vera, SOURCE), vera.prefix)
    assert min(apart(past, own)) > 0.05
    assert past.manifest.spans[-1].kind == "content"
    assert past.manifest.sender == "lyra"
    ops = [step.op for step in past.manifest.lineage]
    assert ops[ops.index("fuse") :] == ["fuse", "rope.move", "rope.apply", "concat"]
    assert Step("fuse", {"fuser": str(kept), "kind": "bottleneck"}) in past.manifest.lineage
    assert answerer.logits(vera.asked("Who?"), past).isfinite().all()


def test_columns_of_several_tokens_are_pooled_to_the_receivers(
    reader: TransformersEngine, answerer: TransformersEngine
) -> None:
    reading = Agent("lyra", reader).read(SOURCE)
    rows, sent = sent_rows(reading, answerer), as_rows(content_columns(reading.cache))
    own, theirs = answerer.located(SOURCE), reader.located(SOURCE)
    assert len(rows) == len(own)
    pooled = 0
    for at, (start, stop) in enumerate(own):
        covering = [part for part, (first, last) in enumerate(theirs) if first < stop and start < last]
        if SOURCE[start:stop] == "ë":  # Two bytes, a token each in both models.
            covering = covering[:1] if own[at + 1] == (start, stop) else covering[1:]
        (only,) = covering
        assert torch.allclose(rows[at], sent[only], atol=1e-6)
        pooled += at > 0 and torch.equal(rows[at], rows[at - 1])
    # As many of the receiver's tokens as there are fewer of the sender's share a column with the one before.
    assert pooled == len(own) - len(theirs) > 5


def test_the_bytes_are_those_of_the_message(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver
) -> None:
    vera, read, tokens = Agent("vera", answerer), (Agent("lyra", reader), SOURCE), len(answerer.encode(SOURCE))
    half, full = deliver(f"fused:{kept}", vera, read), deliver(f"fused:{kept}+float32", vera, read)
    # 6 numbers of the linear map and 4 of the network for each of the receiver's tokens.
    assert (half.bytes_moved, full.bytes_moved) == (2 * 10 * tokens, 4 * 10 * tokens)
    assert (half.tokens_skipped, half.tokens_prefilled, half.lossy) == (tokens, 0, True)
    assert (half.channel, full.channel) == (f"fused:{kept}", f"fused:{kept}+float32")
    assert half.seconds.capture > 0
    # What bfloat16 costs is there, and small.
    error, size = apart(past_of(half), past_of(full)), float(past_of(full).layers[0].keys.abs().max())
    assert 0 < max(error) < 0.02 * size
    assert deliver(f"fused:{kept}+float16", vera, read).bytes_moved == half.bytes_moved


@pytest.mark.parametrize("codec", ["float32", "bfloat16"])
def test_the_identity_between_one_model_and_itself_is_the_plain_channel(
    answerer: TransformersEngine, deliver: Deliver, tmp_path: Path, codec: str
) -> None:
    pair = Pair.of(answerer.spec, answerer.spec)
    fuser = Bottleneck(msgspec.to_builtins(pair), pair.sender.width, width=0)
    fuser.down.copy_(torch.eye(pair.sender.width))
    fuser.up.copy_(torch.eye(pair.sender.width))
    fuser.save_pretrained(tmp_path / "same")
    vera, read = Agent("vera", answerer), (Agent("lyra", answerer), SOURCE)
    fused, plain = deliver(f"fused:{tmp_path / 'same'}+{codec}", vera, read), deliver(f"kv+{codec}", vera, read)
    assert max(apart(past_of(fused), past_of(plain))) < 1e-5
    assert past_of(fused).positions.tolist() == past_of(plain).positions.tolist()
    assert past_of(fused).manifest.spans == past_of(plain).manifest.spans
    assert fused.tokens_skipped == plain.tokens_skipped
    # The plain channel sends positions besides.
    assert fused.bytes_moved == plain.bytes_moved - 4 * fused.tokens_skipped


@pytest.mark.parametrize("layers", [0, 2, 5])
def test_first_layers_may_stay_the_receivers_own(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver, layers: int
) -> None:
    vera, read = Agent("vera", answerer), (Agent("lyra", reader), SOURCE)
    made, plain = deliver(f"fused:{kept}:own={layers}", vera, read), deliver(f"fused:{kept}", vera, read)
    own = answerer.prefill(content(vera, SOURCE), vera.prefix)
    assert [value < 1e-6 for value in apart(past_of(made), own)] == [True] * layers + [False] * (5 - layers)
    assert [value < 1e-6 for value in apart(past_of(made), past_of(plain))] == [False] * layers + [True] * (5 - layers)
    # The receiver has read the text, and the message travelled all the same.
    assert (made.tokens_prefilled, made.tokens_skipped) == (len(answerer.encode(SOURCE)), 0)
    assert made.bytes_moved == plain.bytes_moved
    assert made.channel == f"fused:{kept}:own={layers}"
    assert [step.op for step in past_of(made).manifest.lineage][-2:] == ["concat", "late"]
    assert "fuse" in [step.op for step in past_of(made).manifest.lineage]
    # They are not the text's columns: no token stands beside them that would say so.
    assert past_of(made).manifest.token_ids is None


def test_zeros_show_what_the_fuser_alone_does(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver
) -> None:
    lyra, vera, blank = Agent("lyra", reader), Agent("vera", answerer), Step("control.zero")
    channel = Fused(str(kept), codec="float32")
    made = channel.deliver(lyra.read(SOURCE), vera, blank)
    again = channel.deliver(lyra.read(SOURCE.swapcase()), vera, blank)
    assert max(apart(past_of(made), past_of(again))) < 1e-6
    assert made.bytes_moved == deliver(f"fused:{kept}+float32", vera, (lyra, SOURCE)).bytes_moved
    assert past_of(made).manifest.lineage[-1] == blank
    values = past_of(made).layers[0].values[:, vera.prefix.columns :]
    assert float((values - values[:, :1]).abs().max()) < 1e-6  # Every column is the same constant.


class Adding:
    """An enricher that adds the mean of the sender's numbers to every value."""

    kind: ClassVar[str] = "adding"

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    @property
    def pair(self) -> Pair:
        return self._pair

    def enrich(self, rows: Tensor, own: KVCache) -> list[Enriched]:
        added = rows.mean(dim=1)[None, :, None]
        return [(layer.keys, layer.values + added, layer.positions) for layer in own.layers]


def test_an_enricher_changes_the_receivers_own_columns(
    reader: TransformersEngine, answerer: TransformersEngine, deliver: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding = Adding(Pair.of(reader.spec, answerer.spec))
    assert isinstance(adding, Enricher)
    monkeypatch.setattr("unspoken.channels.fused.load_fuser", lambda name: adding)
    lyra, vera = Agent("lyra", reader), Agent("vera", answerer)
    delivery = deliver("fused:x+float32", vera, (lyra, SOURCE))
    own, start = answerer.prefill(content(vera, SOURCE), vera.prefix), vera.prefix.columns
    rows = sent_rows(lyra.read(SOURCE), answerer)
    for mine, other in zip(past_of(delivery).layers, own.layers, strict=True):
        assert torch.allclose(mine.keys, other.keys, atol=1e-6)
        assert torch.allclose(mine.values[:, :start], other.values[:, :start], atol=1e-6)
        moved = mine.values[:, start:] - other.values[:, start:]
        assert torch.allclose(moved, rows.mean(dim=1)[None, :, None].expand_as(moved), atol=1e-5)
    # Both have read; what travelled is the sender's columns, one for each of the receiver's tokens.
    tokens = len(answerer.encode(SOURCE))
    assert (delivery.tokens_prefilled, delivery.tokens_skipped) == (tokens, 0)
    assert delivery.bytes_moved == 4 * tokens * adding.pair.sender.width
    with pytest.raises(UsageError, match="in layers of its own choice"):
        deliver("fused:x:own=1", vera, (lyra, SOURCE))


def test_another_pair_is_refused(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver,
    tiny_engine: Callable[..., TransformersEngine],
) -> None:  # fmt: skip
    other = Agent("vera", tiny_engine("llama", seed=9, num_hidden_layers=5))
    with pytest.raises(IncompatibleCache, match="the receiver's weights is "):
        deliver(f"fused:{kept}", other, (Agent("lyra", reader), SOURCE))
    with pytest.raises(IncompatibleCache, match=r"the sender's weights is .*the receiver's weights is "):
        deliver(f"fused:{kept}", Agent("vera", reader), (Agent("lyra", answerer), SOURCE))


def test_one_sender_at_a_time(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver
) -> None:
    with pytest.raises(UsageError, match="'fused' takes what one sender has read, found 2"):
        deliver(f"fused:{kept}", Agent("vera", answerer), (Agent("a", reader), "One."), (Agent("b", reader), "Two."))


def test_engines_that_do_not_locate_tokens_are_refused(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mute(FakeEngine):
        located = None  # type: ignore[assignment]

    reading = Agent("lyra", reader).read(SOURCE)
    with pytest.raises(UsageError, match="'fused' needs the characters that tokens cover"):
        sent_rows(reading, Mute())
    with pytest.raises(UsageError, match="'fused' needs the characters that tokens cover"):
        sent_rows(replace(reading, reader=Agent("lyra", Mute())), answerer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fused", "names no fuser"),
        ("fused:x+int8", "cannot be sent as 'int8'"),
        ("fused:x:own=a", "'a' is no number for the channel 'fused'"),
        ("fused:x:own=-1", "'-1' is no number"),
        ("fused:x:own=1.5", "'1.5' is no number"),
        ("fused:x@0.3", "has no option 'amount'"),
        ("fused:x:y", "has two options 'variant'"),
        ("fused:x:other=1", "has no option 'other'"),
    ],
)
def test_impossible_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_channel(name)


def test_layers_and_fusers_that_there_are_not_are_refused(
    reader: TransformersEngine, answerer: TransformersEngine, kept: Path, deliver: Deliver, tmp_path: Path
) -> None:
    vera, read = Agent("vera", answerer), (Agent("lyra", reader), SOURCE)
    with pytest.raises(UsageError, match="in 6 of 5 layers"):
        deliver(f"fused:{kept}:own=6", vera, read)
    with pytest.raises(StorageError, match="There is no fuser in"):
        deliver(f"fused:{tmp_path}", vera, read)


def test_a_fuser_is_loaded_once_and_only_when_it_is_needed(
    answerer: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    adding = Adding(Pair.of(answerer.spec, answerer.spec))
    monkeypatch.setattr("unspoken.channels.fused.load_fuser", lambda name: (loaded.append(name), adding)[1])
    channel = Fused("x")
    assert loaded == []
    assert channel.fuser is channel.fuser is adding
    assert loaded == ["x"]
