"""`unspoken ask` with several documents, and with files whose columns are packed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from unspoken.cachefile import peek

from .program import ASKED, DOCUMENT, FAKE, Program, Result, clear, folder_of

if TYPE_CHECKING:
    from unspoken.engines.transformers import TransformersEngine

PARTS = ("The old mill is run by Anna.", " The new mill is run by Bob.")
NEW = "Who runs the new mill?"
# Bytes of a number of the fake engine's two layers with two heads of eight channels, keys and values.
NUMBERS = 2 * 2 * 2 * 8


@pytest.fixture
def documents(tmp_path: Path) -> tuple[Path, Path]:
    """A file for each part."""
    files = tmp_path / "a.txt", tmp_path / "b.txt"
    for file, text in zip(files, PARTS, strict=True):
        file.write_text(text)
    return files


def about(*files: object) -> tuple[object, ...]:
    """The options that name documents."""
    return tuple(part for file in files for part in ("--about", file))


@pytest.mark.parametrize("channel", ["kv", "compose:align", "compose:legolink@4", "text", "need:recency@1"])
def test_two_documents_are_read_by_two_agents_and_asked_about_together(
    unspoken: Program, documents: tuple[Path, Path], channel: str
) -> None:
    for question, answer in ((NEW, "Bob"), (ASKED, "Anna")):
        told = unspoken("ask", question, *about(*documents), "--channel", channel, *FAKE, "--json").data
        assert (told["answer"], told["channel"]) == (answer, channel)
    length = len("".join(PARTS))
    again = 4 / length if "legolink" in channel else 0
    assert told["recomputed"] == pytest.approx(again)
    if channel == "text":
        assert told["message"] == "\n\n".join(part.strip() for part in PARTS)
    else:
        assert told["tokens_skipped"] == length
        tokens = {"compose:legolink@4": 4 * length, "need:recency@1": len(ASKED)}.get(channel, 0)
        # bfloat16 on the wire, and the positions of each segment's columns.
        assert told["bytes_moved"] == length * (2 * NUMBERS + 4) + tokens


def test_senders_are_named_in_the_order_of_their_documents(
    unspoken: Program, documents: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unspoken.session import Agent

    read: list[tuple[str, str]] = []
    own = Agent.read
    monkeypatch.setattr(Agent, "read", lambda self, text: (read.append((self.name, text)), own(self, text))[1])
    named = unspoken("ask", NEW, *about(*documents), "--sender", "dora", "--sender", "emil", *FAKE)
    unspoken("ask", NEW, *about(*documents), *FAKE)
    unspoken("ask", NEW, *about(*documents), "--agent", "lyra", *FAKE)
    assert named.out == "Bob\n"
    assert read == [
        *zip(("dora", "emil"), PARTS, strict=True),
        *zip(("lyra", "cc"), PARTS, strict=True),
        *zip(("cc", "vera"), PARTS, strict=True),
    ]


def test_two_documents_of_one_text_are_two_documents(unspoken: Program, documents: tuple[Path, Path]) -> None:
    told = unspoken("ask", ASKED, *about(documents[0], documents[0]), *FAKE, "--json").data
    assert told["answer"] == "Anna"
    assert told["tokens_skipped"] == 2 * len(PARTS[0])


def test_the_agent_of_a_card_takes_its_name_from_nobody_who_reads(
    unspoken: Program, documents: tuple[Path, Path], tmp_path: Path
) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("name: lyra\ncard: You are Lyra.\n")
    assert unspoken("ask", NEW, *about(*documents), "--card", card, *FAKE).out == "Bob\n"
    told = unspoken("ask", NEW, *about(*documents), "--card", card, "--sender", "lyra", "--sender", "cc", *FAKE)
    clear(told, "two or more agents of different names")


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "two senders for one document": (("--sender", "lyra", "--sender", "cc"), "1 documents and the senders lyra, cc"),
    "one sender for two documents": (("--about", "b.txt", "--sender", "lyra"), "2 documents and the senders lyra."),
    "a sender twice": (
        ("--about", "b.txt", "--sender", "lyra", "--sender", "lyra"),
        "2 documents and the senders lyra, lyra",
    ),
    "the receiver among the senders": (
        ("--about", "b.txt", "--sender", "lyra", "--sender", "vera"),
        "two or more agents of different names",
    ),
    "a second document that is empty": (("--about", "empty.txt"), "empty.txt is empty"),
    "a second document that is missing": (("--about", "no.txt"), "no.txt cannot be read"),
    "standard input for two documents": (("--about", "-", "--about", "-"), "Standard input can be read once only"),
    "a channel for one sender alone": (
        ("--about", "b.txt", "--channel", "kv-continue"),
        "'kv-continue' takes what one sender has read, found 2 senders",
    ),
    "a sender's name that is no text": (("--sender", "\udcff"), "The agent's name is not UTF-8 text"),
    "an agent's name that is no text": (("--agent", "\udcff"), "The agent's name is not UTF-8 text"),
    "more documents than names": (about(*["b.txt"] * 9), "10 documents"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_documents_and_senders_that_cannot_be_are_told(
    unspoken: Program, documents: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    more, problem = BAD[name]
    before = folder_of(tmp_path)
    told = unspoken("ask", NEW, *about(documents[0]), *more, *FAKE)
    clear(told, problem)
    assert told.out == ""
    assert folder_of(tmp_path) == before


@pytest.mark.parametrize(("mode", "channel"), [((), "kv"), (("--whole",), "kv-continue")])
@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8", "int4"])
def test_what_moves_from_a_file_is_what_lies_in_it(
    unspoken: Program, made: Path, tmp_path: Path, wire: str, mode: tuple[str, ...], channel: str
) -> None:
    file = tmp_path / "a.kv.safetensors"
    captured = unspoken("capture", made / "doc.txt", "--out", file, "--wire", wire, *mode, *FAKE)
    assert captured.code == 0, captured.err
    told = unspoken("ask", ASKED, "--cache", file, *FAKE, "--json").data
    # Everything in the file's data but positions, which all layers share: these travel once.
    held = {name: each.stop - each.start for name, each in peek(file).tensors.items()}
    columns = peek(file).manifest.cache.layers[0].columns
    payload = sum(size for name, size in held.items() if not name.endswith(".positions"))
    assert told["bytes_moved"] == payload + 4 * columns
    assert told["channel"] == channel
    assert told["tokens_skipped"] == columns
    full = columns * NUMBERS * 4
    assert payload < full / 2 if wire.startswith("int") else payload == full / {"float32": 1, "bfloat16": 2}[wire]
    if wire in ("int8", "bfloat16", "float32"):
        assert told["answer"] == "Anna"
    assert told["lossy"] == (wire != "float32" or channel == "kv")


@pytest.mark.parametrize(("wire", "code_bytes"), [("int8", 1), ("int4", 0.5)])
def test_a_packed_file_is_shown_with_its_share_of_bfloat16(
    unspoken: Program, made: Path, tmp_path: Path, wire: str, code_bytes: float
) -> None:
    file, columns = tmp_path / "a.kv.safetensors", len(DOCUMENT)
    unspoken("capture", made / "doc.txt", "--out", file, "--wire", wire, *FAKE)
    # A scale and a minimum, of two bytes each: in each layer and head one for each channel of keys, as one group takes
    # all tokens, and one for each token of values.
    payload, full = columns * NUMBERS * code_bytes + 4 * 2 * 2 * (8 + columns), columns * NUMBERS * 2
    shown = unspoken("inspect", file).out
    assert f"packed as {wire} ({payload / full:.2f} of bfloat16's bytes; {full * 2 / 1000:.1f} kB of float32" in shown


def test_packed_files_of_what_cannot_be_gone_on_from_are_told_in_one_sentence(
    unspoken: Program, made: Path, tmp_path: Path
) -> None:
    import torch

    from unspoken.cache import KVCache, KVLayer
    from unspoken.cachefile import read_cache, write_cache
    from unspoken.manifest import Step
    from unspoken.transforms.select import keep

    sound = read_cache(made / "good.kv.safetensors")
    far = [KVLayer(each.index, each.keys, each.values, each.positions.clone()) for each in sound.layers]
    for layer in far:
        layer.positions[-1] = 2**31 - 1
    odd = {
        "positions; 'smollm2-135m' was made for 4096": KVCache(tuple(far), sound.manifest),
        "'fake' keeps one position for all layers": keep(sound, [torch.arange(5), torch.arange(3, 8)], Step("odd")),
        "holds 1 of the 2 layers": KVCache.build(sound.layers[:1], sound.spec, rope="removed"),
    }
    for problem, cache in odd.items():
        for wire in ("int8", "int4"):
            write_cache(cache, tmp_path / "odd.kv", wire)
            clear(unspoken("ask", ASKED, "--cache", tmp_path / "odd.kv", *FAKE), problem)


@pytest.fixture
def ask(
    unspoken: Program,
    tiny_engine: Callable[..., TransformersEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Result]]:
    """Ask a tiny model about a text through a channel."""
    engine = tiny_engine("llama", num_hidden_layers=4)
    monkeypatch.setattr("unspoken.api.load_gated", lambda *_: (engine, None))

    def make(question: str, text: str, channel: str) -> Result:
        (tmp_path / "odd.txt").write_text(text)
        given: tuple[Any, ...] = ("--channel", channel, "--tokens", 2)
        return unspoken("ask", question, *about(tmp_path / "odd.txt"), *given)

    yield make
    gc.unfreeze()


RUSSIAN = "Мельницей управляет Анна. Был спокойный день."
CHANNELS = ("kv", "need@0.3", "need:value-norm@0.3", "compose:blend@0.15", "latent@2", "embedding@2", "layers@0.5")
ODD: dict[str, tuple[str, str]] = {
    "one letter": ("Who?", "x"),
    "one word": ("Who?", "mill"),
    "another script": ("Кто управляет мельницей?", RUSSIAN),
    "a script written without spaces": ("谁经营磨坊?", "磨坊由安娜经营。那是平静的一周。"),
    "letters from right to left": ("من يدير المطحنة؟", "مطحنة تديرها آنا."),
    "nothing but emoji": ("What is it?", "🙂🙂🙂🙂"),
    "nothing but digits and marks": ("How many?", "1234, 5678; 42..."),
    "control characters": ("Who?", "The mill\x00 is run \x1b[2J by Anna\r\n<|im_end|><|im_start|>"),
}


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("name", sorted(ODD))
def test_odd_documents_are_asked_about_or_refused_in_one_sentence(
    name: str, channel: str, ask: Callable[..., Result]
) -> None:
    told = ask(*ODD[name], channel)
    if "@0.3" in channel and name == "one letter":
        clear(told, "A share of 0.3 of 1 columns is none")
    else:
        assert (told.code, "Error" in told.err) == (0, False), told.err
        assert told.err.startswith(f"[{channel}: ")


@pytest.mark.parametrize(
    ("question", "text", "channel", "problem"),
    [
        ("🙂", DOCUMENT, "need@0.3", "The need is empty: there is no word in it"),
        ("42?", DOCUMENT, "need@0.3", "The need is empty"),
        (ASKED, RUSSIAN, "need@0.3", "written in Latin letters, the source in Cyrillic"),
        ("Кто?", DOCUMENT, "need@0.3", "written in Cyrillic letters, the source in Latin"),
        (ASKED, " \n", "compose:blend@0.15", "is empty"),
        (ASKED, "word " * 200, "compose:blend@0.15", "positions; 'tiny-llama' was made for 512"),
        (ASKED, "word " * 200, "need@0.3", "positions; 'tiny-llama' was made for 512"),
        (ASKED, DOCUMENT, "latent@100000", "positions; 'tiny-llama' was made for 512"),
        (ASKED, DOCUMENT, "embedding@100000", "positions; 'tiny-llama' was made for 512"),
        (ASKED, DOCUMENT, "need:backfill=1.5@0.3", "'1.5' is no number for the channel 'need:backfill'"),
        (ASKED, DOCUMENT, "finetune:²-³", "'²-³' are no layers"),
        (ASKED, DOCUMENT, "activation@1e300", "no layer 1e300 among 4"),
        (ASKED, DOCUMENT, "layers@0.1", "A share of 0.1 of 4 layers is none"),
        (ASKED, DOCUMENT, "kv+\udcff", "no codec named"),
        (ASKED, DOCUMENT, "", "no channel named ''"),
    ],
)
def test_what_a_channel_cannot_do_with_a_text_is_told_in_one_sentence(
    question: str, text: str, channel: str, problem: str, ask: Callable[..., Result]
) -> None:
    clear(ask(question, text, channel), problem)


@pytest.mark.parametrize("channel", ["kv", "compose:blend@0.15", "latent@2"])
def test_a_question_of_emoji_alone_is_asked_where_no_word_is_needed(channel: str, ask: Callable[..., Result]) -> None:
    assert ask("🙂", DOCUMENT, channel).code == 0
