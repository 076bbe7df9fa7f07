"""A deterministic engine without weights, for tests: yours and ours.

It is a tiny model that really reads its cache. Values spell the token, keys are one vector turned to the
column's position; whatever is zeroed, noised, displaced or never handed over cannot be read. It answers by
quoting: it finds the sentence that shares most words with the question and replies with its last word.

    engine = FakeEngine()
    talk = Session(Agent("lyra", engine), Agent("vera", engine), channel="kv")
    talk.ask("vera", "Who runs the old mill?", about="The old mill is run by Anna.").text  # "Anna"
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unspoken.cache import DTYPES, KVCache, KVLayer
from unspoken.engines import chat
from unspoken.engines.capabilities import covered
from unspoken.engines.checks import (
    first_position,
    option_tokens,
    require_alike,
    require_injectable,
    require_plain,
    require_turns,
)
from unspoken.engines.prefilled import prefilled
from unspoken.engines.protocol import Frame, Generation, Hearer, Limits, Loading, Prompt, Source, Turn
from unspoken.spec import ModelSpec, RopeSpec, fingerprint
from unspoken.transforms.cast import Cast
from unspoken.transforms.rope import angles, rotation, turn

LAYERS, KV_HEADS, HEAD_DIM, BYTES = 2, 2, 8, 256
MARKS = ("<|start|>", "<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY = BYTES + len(MARKS)
TEMPLATE = f"<|start|><|system|>{chat.SYSTEM_MARK}<|user|>{chat.USER_MARK}<|assistant|>"
BETWEEN = "<|user|>"
ROPE = RopeSpec("default", "half", (1.0, 0.125, 0.015625, 0.001953125))
UNKNOWN, UNREADABLE = "unknown", "\ufffd"
# Both requests of the text channels hold these words (`unspoken.channels.text` stands above this module).
WRITING = "colleague who has not seen this text"
# How far a column may be off: more than bfloat16 changes, less than one token or one position.
TOLERANCE = 0.25
LIKELY, UNLIKELY = -0.1, -7.0
COMMON = frozenset("a an and answer are at briefly by do does for in is it its of on the to what which who".split())
_MARK = re.compile("(" + "|".join(re.escape(mark) for mark in MARKS) + ")")
_SPELT = [*(bytes((byte,)) for byte in range(BYTES)), *(mark.encode() for mark in MARKS)]


class Quote(NamedTuple):
    """What the engine found: the sentence, empty if there is none, and what it replies."""

    sentence: str
    reply: str


class FakeEngine:
    """A model of two layers over UTF-8 bytes that quotes what it can see.

    Args:
        seed: Another seed makes another model, whose caches do not fit this one.
        name: For display; by default made from the seed.
        dtype: Element type of its caches.
        context: Positions it takes.
    """

    name = "fake"
    version = "1"

    def __init__(self, seed: int = 0, name: str = "", dtype: str = "float32", context: int = 4096) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._base = torch.randn((LAYERS, KV_HEADS, 1, HEAD_DIM), generator=generator).sign()
        self._head = torch.randn((LAYERS * KV_HEADS * HEAD_DIM, VOCABULARY), generator=generator) / 8
        self._narrow = Cast(dtype)
        self.dtype = self.precision = dtype
        self._spec = ModelSpec(
            name=name or f"fake-{seed}",
            family="fake",
            layers=LAYERS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            vocabulary=VOCABULARY,
            context=context,
            rope=ROPE,
            weights=fingerprint(f"fake/{seed}"),
            architecture=fingerprint("fake"),
            tokenizer=fingerprint("bytes"),
            chat_template=fingerprint(TEMPLATE),
        )

    @property
    def spec(self) -> ModelSpec:
        """The model, as far as a cache depends on it."""
        return self._spec

    def encode(self, text: str) -> tuple[int, ...]:
        """Return a text's UTF-8 bytes; each of `MARKS` in it is one token."""
        parts = [[BYTES + MARKS.index(part)] if part in MARKS else list(part.encode()) for part in _MARK.split(text)]
        return tuple(token for part in parts for token in part)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return bytes(token for token in token_ids if token < BYTES).decode(errors="replace")

    def located(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return for each token of `encode(text)` the characters [start, stop) of the text that it covers."""
        return covered(text, (len(_SPELT[token]) for token in self.encode(text)))

    def frame(self, system: str) -> Frame:
        """Return the chat template around a user's words, for a system prompt."""
        return chat.cut(TEMPLATE, BETWEEN, system, self.encode)

    def prefill(self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None) -> KVCache:
        """Read a prompt and return the cache of `past` and prompt together."""
        ids, first = prompt.token_ids, self._first(prompt, past, start)
        positions, dtype = torch.arange(first, first + len(ids), dtype=torch.int32), DTYPES[self.dtype]
        layers = [
            KVLayer(at, self._keys(positions, at).to(dtype), _values(torch.tensor(ids), at).to(dtype), positions)
            for at in range(LAYERS)
        ]
        read = KVCache.build(layers, self._spec, spans=prompt.spans(), token_ids=ids)
        whole = read if past is None else self._narrow(past).concat(read)
        return prefilled(whole.layers, self._spec, prompt, past, self.name)

    def logits(
        self, prompt: Prompt, past: KVCache | None = None, *, start: int | None = None
    ) -> Float[Tensor, "seq vocab"]:
        """Return the float32 logits at every token of a prompt: attention over what it sees, and a fixed head."""
        cache, ids = self.prefill(prompt, past, start=start), torch.tensor(prompt.token_ids)
        seen = torch.ones(len(ids), cache.columns).tril(cache.columns - len(ids)).bool()
        outputs = []
        for layer in cache.layers:
            queries = self._keys(layer.positions[-len(ids) :], layer.index)
            scores = queries @ layer.keys.to(torch.float32).transpose(1, 2) / HEAD_DIM**0.5
            weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
            outputs.append(weights @ layer.values.to(torch.float32) + _values(ids, layer.index))
        return torch.cat(outputs).transpose(0, 1).flatten(1) @ self._head

    def generate(self, turns: Sequence[Turn], limits: Limits, hear: Hearer | None = None) -> tuple[Generation, ...]:
        """Answer each turn with a quote from what it can see, whatever the temperature."""
        require_turns(turns, limits)
        require_plain(turns, self.name)
        made = tuple(self._answer(each, limits) for each in turns)
        for at, each in enumerate(made):
            if hear is not None and each.text:
                hear(at, each.text)
        return made

    def close(self) -> None:
        """There is nothing to give back."""

    def _answer(self, asked: Turn, limits: Limits) -> Generation:
        began, prompt = time.perf_counter(), asked.prompt
        self._first(prompt, asked.past, None)
        option_tokens(asked, limits, self._spec, self.encode)
        quote = self._quote(asked)
        made = self.encode(quote.reply)[: limits.new_tokens]
        logits = self.logits(prompt, asked.past)[-1].clone()
        logits[made[0]] = logits.max() + 10.0
        text = self.decode(made)
        for end, stop in sorted((text.index(stop), stop) for stop in limits.stop if stop in text)[:1]:
            made, text = self.encode(text[:end] + stop), text[:end]
        scores = tuple(LIKELY if _occurs(each.strip(), quote.sentence) else UNLIKELY for each in asked.options)
        took = time.perf_counter() - began
        return Generation(text, made, scores, logits.log_softmax(dim=-1), took, took, len(prompt.token_ids))

    def _quote(self, asked: Turn) -> Quote:
        """Cut what is visible into source, question (the last content) and stem of the answer, and look it up."""
        pieces = asked.prompt.pieces
        asking = max((at for at, piece in enumerate(pieces) if piece.kind == "content" and piece.token_ids), default=-1)
        if asking < 0 and asked.past is not None:
            return self._remembered(asked.past)
        asking = max(asking, 0)
        parts = (pieces[:asking], pieces[asking : asking + 1], pieces[asking + 1 :])
        before, content, after = (_text(Prompt(part).token_ids) for part in parts)
        head, _, question = content.rpartition("\n\n")
        past = _text(self._readable(asked.past)) if asked.past else ""
        said = f"{past}{before}{head}"
        # In a conversation, a turn that has only just begun is about the turns before it.
        source = said.rpartition("<|user|>")[2].strip() or _MARK.sub("\n", said.partition("<|user|>")[2]).strip()
        return _found(source, question, _MARK.split(after)[-1].strip())

    def _remembered(self, past: KVCache) -> Quote:
        """Look up the last line of what was read before, a conversation, in all the lines above it."""
        said = _text(self._readable(past)).partition("<|user|>")[2]
        *earlier, question = _MARK.sub("\n", said).rstrip().rsplit("\n", 1)
        return _found("".join(earlier), question, "")

    def _readable(self, cache: KVCache) -> list[int | None]:
        """Return the tokens a cache spells, in order of position; None for a column that cannot be read."""
        high, low = cache.layers[0].values[0, :, :2].to(torch.float32).nan_to_num().round().clamp(1, 32).long().T - 1
        ids = (high * 16 + low).clamp(max=VOCABULARY - 1)
        sound = torch.ones(cache.columns, dtype=torch.bool)
        for layer in cache.layers:
            right = torch.cat((_values(ids, layer.index), self._keys(layer.positions, layer.index)))
            found = torch.cat((layer.values, layer.keys)).to(torch.float32)
            sound &= (found - right).abs().amax(dim=(0, 2)) < TOLERANCE
        order = cache.positions.argsort(stable=True)
        return [None if token < 0 else token for token in torch.where(sound, ids, -1)[order].tolist()]

    def _keys(self, positions: Int[Tensor, " seq"], layer: int) -> Float[Tensor, "kv_heads seq head_dim"]:
        return turn(self._base[layer].expand(-1, len(positions), -1), rotation(angles(positions, ROPE)), ROPE)

    def _first(self, prompt: Prompt, past: KVCache | None, start: int | None) -> int:
        """Return the position of a prompt's first token, or refuse the prompt or its past."""
        if past is not None:
            require_injectable(past, self._spec)
            require_alike(past, self.name)
        return first_position(prompt, past, start, self._spec)


def load(source: Source, loading: Loading) -> FakeEngine:
    """Return a fake model; another name makes another model, files and device are not used."""
    loading.refuse("fake", "kv_type", "context", "gpu_layers", "threads")
    return FakeEngine(zlib.crc32(source.name.encode()), source.name, loading.dtype or "float32")


def _values(token_ids: Int[Tensor, " seq"], layer: int) -> Float[Tensor, "kv_heads seq head_dim"]:
    """Spell tokens in small whole numbers, exact in bfloat16; none is all zeros."""
    values = torch.zeros((KV_HEADS, len(token_ids), HEAD_DIM))
    values[:, :, 0], values[:, :, 1], values[:, :, 2 + layer] = token_ids // 16 + 1, token_ids % 16 + 1, 1
    return values


def _text(token_ids: Iterable[int | None]) -> str:
    """Return the text of tokens with marks spelt out, and `UNREADABLE` for what cannot be read."""
    spelt = (UNREADABLE.encode() if token is None else _SPELT[token] for token in token_ids)
    return b"".join(spelt).decode(errors="replace")


def _found(source: str, question: str, stem: str) -> Quote:
    """Return the sentence of the source that shares most words with question and stem, and the reply to it."""
    wanted = _words(f"{question} {stem}") - COMMON
    sentence = max(re.split(r"(?<=[.!?])\s+|\n+", source), key=lambda each: len(_words(each) & wanted))
    if WRITING in question and "?" not in question:
        return Quote(source, source or UNKNOWN)
    if not _words(sentence) & wanted:
        return Quote("", UNKNOWN)
    told = sentence.strip().rstrip(".!?")
    if WRITING in question:
        return Quote(sentence, sentence)
    rest = told.removeprefix(stem).strip() if stem and told.startswith(stem) else ""
    return Quote(sentence, rest or told.split()[-1])


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _occurs(option: str, sentence: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(option)}(?!\w)", sentence) is not None
