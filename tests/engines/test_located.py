"""Tokens know the characters they cover, in every engine and for every kind of tokenizer, and all are covered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.engines.capabilities import Located, covered, located
from unspoken.engines.fake import MARKS, FakeEngine
from unspoken.engines.parked import Parked, Slot
from unspoken.engines.protocol import Engine, Loading
from unspoken.engines.transformers import TransformersEngine
from unspoken.errors import UsageError
from unspoken.fusers.align import by_spans

Spans = tuple[tuple[int, int], ...]
TEXT = "Vera's  notes:\n\n\tnaïve café, e\u0301tude — 汉字かな 🚀👩‍🚀🇩🇪  ¡a .  x "
SPECIAL = "<|im_start|>user\nHi 🚀<|im_end|>"
WORDS = ["Die ", " Katze", "  ", "\n\n", "é", "汉字", "🚀", "ﷺ", " 12,5", "\t", "'s", "ﬁ", "\u00a0", "x"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map("".join)


class Mute(FakeEngine):
    """An engine that cannot locate its tokens."""

    located = None  # type: ignore[assignment]


def joined(text: str, spans: Spans) -> str:
    """The covered characters, those of several tokens once; no end goes back and nothing is outside."""
    parts, end = [], 0
    for start, stop in spans:
        assert start <= stop <= len(text)
        assert stop >= end
        parts.append(text[max(start, end) : stop])
        end = stop
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    return "".join(parts)


def byte_spans(text: str) -> Spans:
    """For each byte of a text the character it is a part of."""
    return tuple((at, at + 1) for at, character in enumerate(text) for _ in character.encode())


def pieces(*tokens: str) -> list[str]:
    """A vocabulary of SentencePiece's kind: specials, bytes, tokens."""
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]


PIECES = pieces("▁", "a", "b", "c", "h", "e", "汉", "▁a", "he", "▁he")


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A tokenizer as Llama 2 and Mistral have it: a space in front, bytes for what is in no token."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    merges = [("▁", "a"), ("h", "e"), ("▁", "he")]
    vocabulary = {each: at for at, each in enumerate(PIECES)}
    raw = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def llamacpp(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Engine]]:
    """Open the llama.cpp engine on a tiny model with a tokenizer of a few merges and fields changed."""
    from unspoken.engines.llamacpp import load
    from unspoken.engines.llamacpp.library import candidates

    from .llamacpp.tiny import File, merging, write_model

    if next(candidates(), None) is None:
        pytest.skip("there is no llama.cpp library: pip install 'unspoken[llamacpp]'")
    opened: list[Engine] = []

    def make(name: str, tokens: int, **changed: Any) -> Engine:
        path: Path = tmp_path_factory.mktemp("gguf") / f"{name}.gguf"
        write_model(path, tiny_model(vocab_size=tokens), merging(tiny_tokenizer()), changed)
        opened.append(load(File(path), Loading(threads=1, context=64)))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.fixture(scope="module")
def of_bytes(llamacpp: Callable[..., Engine]) -> Engine:
    """llama.cpp with a vocabulary of bytes and two merges."""
    return llamacpp("bytes", 260)


@pytest.fixture(scope="module")
def of_pieces(llamacpp: Callable[..., Engine]) -> Engine:
    """llama.cpp with a vocabulary of SentencePiece's kind."""
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(PIECES) - 259)]
    fields = {"model": "llama", "pre": None, "merges": None, "chat_template": None, "tokens": PIECES}
    fields |= {"token_type": kinds, "scores": [0.0] * 259 + [float(len(each)) for each in PIECES[259:]]}
    fields |= {"eos_token_id": 2, "bos_token_id": 1, "unknown_token_id": 0, "add_space_prefix": True}
    return llamacpp("pieces", len(PIECES), **{f"tokenizer.ggml.{key}": value for key, value in fields.items()})


def test_a_part_of_a_character_covers_the_whole_and_no_byte_covers_nothing() -> None:
    assert covered("a汉b", [1, 1, 2, 0, 1]) == ((0, 1), (1, 2), (1, 2), (2, 2), (2, 3))
    assert covered("汉b", [0, 2, 2]) == ((0, 0), (0, 1), (0, 2))
    assert covered("a", [1, 0]) == ((0, 1), (1, 1))
    assert covered("", []) == ()


def test_the_fake_engine_covers_a_character_by_each_of_its_bytes_and_a_mark_by_one_token(fake: FakeEngine) -> None:
    assert fake.located(TEXT) == byte_spans(TEXT)
    assert fake.located(f"é{MARKS[2]}b") == ((0, 1), (0, 1), (1, 9), (9, 10))


def test_an_engine_is_taken_for_what_it_can(fake: FakeEngine, tiny_engine: Callable[..., Engine]) -> None:
    assert located(fake, "fused") is fake
    assert isinstance(tiny_engine(), Located)
    with pytest.raises(UsageError, match="'fused' needs the characters that tokens cover, and the engine 'fake'"):
        located(Mute(), "fused")


def test_a_parked_engine_locates_as_the_one_in_it(fake: FakeEngine) -> None:
    slot = Slot()
    parked = located(Parked(lambda: FakeEngine(1), slot), "fused")
    assert parked.located(TEXT) == fake.located(TEXT)
    with pytest.raises(UsageError, match="'fake-0' needs the characters"):
        Parked(Mute, slot).located(TEXT)


def test_the_transformers_engine_tells_the_tokenizers_offsets(tiny_engine: Callable[..., TransformersEngine]) -> None:
    engine = tiny_engine()
    assert engine.located(TEXT) == byte_spans(TEXT)
    assert engine.located("é<|im_end|>b") == ((0, 1), (0, 1), (1, 11), (11, 12))
    assert engine.located("") == ()


def test_a_space_that_was_put_in_front_covers_nothing(tiny_model: Callable[..., Any], sentencepiece: Any) -> None:
    engine = TransformersEngine(tiny_model(), sentencepiece, "tiny")
    assert engine.located("汉a") == ((0, 0), (0, 1), (1, 2))
    assert engine.located("🚀 b") == ((0, 0), (0, 1), (0, 1), (0, 1), (0, 1), (1, 2), (2, 3))
    assert engine.located("a he</s>汉") == ((0, 1), (1, 4), (4, 8), (8, 8), (8, 9))
    for text in (TEXT, " ▁ a", "  "):
        assert joined(text, engine.located(text)) == text


def test_spaces_that_a_tokenizer_leaves_out_are_in_no_range(
    tiny_model: Callable[..., Any], tiny_tokenizer: Callable[..., Any]
) -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    engine = TransformersEngine(tiny_model(), tokenizer, "tiny")
    assert engine.located("a  é") == ((0, 1), (2, 2), (3, 3), (3, 4), (3, 4))
    assert joined(TEXT, engine.located(TEXT)) == TEXT.replace(" ", "")


def test_a_slow_tokenizer_is_refused(tiny_model: Callable[..., Any]) -> None:
    from transformers import ByT5Tokenizer

    engine = TransformersEngine(tiny_model(vocab_size=400), ByT5Tokenizer(), "tiny")
    with pytest.raises(UsageError, match=r"tokenizer of 'tiny', ByT5Tokenizer, .* it is a slow one"):
        engine.located("a")


def test_llamacpp_locates_bytes_merges_and_special_tokens(of_bytes: Engine) -> None:
    engine = located(of_bytes, "test")
    text = "the é<|im_end|> he\n"
    assert engine.located(text) == ((0, 3), (3, 4), (4, 5), (4, 5), (5, 15), (15, 16), (16, 18), (18, 19))
    assert engine.located("") == ()
    assert len(engine.located(TEXT)) == len(of_bytes.encode(TEXT))


@settings(max_examples=40)
@given(text=TEXTS)
def test_llamacpp_covers_a_character_by_each_token_that_is_one_of_its_bytes(of_bytes: Engine, text: str) -> None:
    assert located(of_bytes, "test").located(text) == byte_spans(text)


def test_llamacpp_locates_sentencepieces_tokens_and_a_space_put_in_front_covers_nothing(
    of_pieces: Engine, tiny_model: Callable[..., Any], sentencepiece: Any
) -> None:
    engine, reference = located(of_pieces, "test"), TransformersEngine(tiny_model(), sentencepiece, "tiny")
    for text in ("汉a", "🚀 b", "a he</s>汉", "he he  b", "a\nb", "<0x0A>"):
        assert of_pieces.encode(text) == reference.encode(text)
        assert engine.located(text) == reference.located(text)
    assert joined(TEXT, engine.located(TEXT)) == TEXT
    # A text that begins with spaces: the token of the one in front covers the first of them, as in transformers.
    assert joined("  a", engine.located("  a")) == "  a"


def test_llamacpp_refuses_tokens_that_do_not_spell_the_text(of_bytes: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    other = of_bytes.encode("théme")
    monkeypatch.setattr(of_bytes, "encode", lambda text: other)
    with pytest.raises(UsageError, match=r"The token \d+ of 'tiny', 'Ã', does not spell what stands at byte 2"):
        located(of_bytes, "test").located("theme")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[tuple[TransformersEngine, Engine]]:
    """SmolLM2 in both engines."""
    from unspoken import load_model
    from unspoken.engines.llamacpp.library import candidates

    if next(candidates(), None) is None:
        pytest.skip("there is no llama.cpp library: pip install 'unspoken[llamacpp]'")
    one, other = load_model("smollm2-135m"), load_model("smollm2-135m", engine="llamacpp", threads=1, context=128)
    assert isinstance(one, TransformersEngine)
    yield one, other
    for each in (one, other):
        each.close()


@pytest.mark.model
def test_both_engines_tell_the_same_characters_of_a_real_tokenizer_and_they_are_the_text(
    smollm2: tuple[TransformersEngine, Engine],
) -> None:
    one, other = smollm2
    for text in (TEXT, SPECIAL, "", " ", "\n \n", "".join(WORDS), "def f(a):\n    return a  # 汉\n"):
        found = one.located(text)
        assert one.encode(text) == other.encode(text)
        assert len(found) == len(one.encode(text))
        assert joined(text, found) == text
        assert located(other, "test").located(text) == found


@pytest.mark.model
@settings(max_examples=40)
@given(text=TEXTS)
def test_every_character_is_covered_and_equal_tokens_cover_equal_ones(
    smollm2: tuple[TransformersEngine, Engine], text: str
) -> None:
    one, other = smollm2
    found, other_found = one.located(text), located(other, "test").located(text)
    assert joined(text, found) == joined(text, other_found) == text
    # The engines cut a few texts differently, such as two spaces before a digit.
    assert (found == other_found) == (one.encode(text) == other.encode(text))


@pytest.mark.model
def test_a_real_tokenisation_is_aligned_with_itself_and_with_its_bytes(
    smollm2: tuple[TransformersEngine, Engine], fake: FakeEngine
) -> None:
    words, letters = smollm2[0].located(TEXT), fake.located(TEXT)
    same = by_spans(words, words)
    assert same.sources.tolist() == same.targets.tolist() == list(range(len(words)))
    made, whole = by_spans(letters, words), 0
    assert sorted(set(made.sources.tolist())) == list(range(len(letters)))
    for token, (start, stop) in enumerate(words):
        if all(min(stop, end) <= max(start, begin) for at, (begin, end) in enumerate(words) if at != token):
            first, last = (len(TEXT[:at].encode()) for at in (start, stop))
            assert made.sources[made.targets == token].tolist() == list(range(first, last))
            whole += 1
    assert len(words) - whole > 4  # Parts of characters, to which this does not apply.
    assert whole > 20
