"""What generated agents are made of: roles, traits, interests, homes and names, each told in several ways.

The lexicon is data, `lexicon.yaml` beside this file. Every entry has texts that describe it: `card`, `reworded` (the
same key word in another sentence), `unshared` (no content word in common with any card it can stand beside), `memory`
(what somebody like that notes down) and, but for homes, `dialogue` (what somebody like that says). The rules are
checked for the whole lexicon when it is loaded, so they hold for every agent made of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec

from unspoken.errors import UsageError

Kind = Literal["role", "trait", "interest", "home"]
NAME = "{name}"
STEM_LETTERS, PREFIX_LETTERS, FEWEST_LETTERS = 5, 4, 3

# Words that serve grammar and say nothing about anybody: articles, pronouns, prepositions, conjunctions, auxiliaries,
# and adverbs of time, place and degree.
FUNCTION_WORDS = frozenset(
    "the this that these those such each every either neither both all any some none few many much more most other "
    "others another same own one you your yours yourself him his her hers its they them their theirs our ours "
    "who whom whose which what whoever whomever whatever whichever somebody someone something anybody anyone anything "
    "nobody nothing everybody everyone everything above about across after against along among around before behind "
    "below beneath beside between beyond down during for from inside into near off onto out outside over past per "
    "since than through throughout till toward towards under until upon with within without and but nor yet because "
    "although though unless whether while whereas when whenever where wherever why how not are was were been being has "
    "have had having does did done doing can cannot could may might must shall should will would too very also only "
    "even just quite rather still already never ever always often again once then there here else away back like "
    "everywhere somewhere anywhere nowhere elsewhere".split()
)

# Fewest and most words of a text. Four fragments make a text of 45 to 70 words, notes of 60 to 90 and, as three
# exchanges, a conversation of 70 to 110.
FRAGMENT_WORDS, HOME_WORDS, MEMORY_WORDS, EXCHANGE_WORDS = (12, 17), (10, 17), (15, 22), (24, 36)


class Exchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user says and what the agent answers."""

    user: str
    assistant: str


class Feature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A role, trait or interest, told in five ways; see the module."""

    card: str
    reworded: str
    unshared: str
    memory: str
    dialogue: Exchange


class Home(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an agent lives, told in four ways; see the module."""

    card: str
    reworded: str
    unshared: str
    memory: str


Entry: TypeAlias = Feature | Home
Roles: TypeAlias = Annotated[dict[str, Feature], msgspec.Meta(min_length=24)]
Features: TypeAlias = Annotated[dict[str, Feature], msgspec.Meta(min_length=20)]
Homes: TypeAlias = Annotated[dict[str, Home], msgspec.Meta(min_length=16)]
Names: TypeAlias = Annotated[tuple[str, ...], msgspec.Meta(min_length=120)]


class Lexicon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an agent can be; keys are the words that name it.

    Attributes:
        roles: What an agent does for a living.
        traits: What it is like.
        interests: What it does besides.
        homes: Where it lives.
        names: Short given names.
    """

    roles: Roles
    traits: Features
    interests: Features
    homes: Homes
    names: Names

    def entries(self) -> dict[Kind, Mapping[str, Entry]]:
        """Return the entries of each kind by their keys."""
        return {"role": self.roles, "trait": self.traits, "interest": self.interests, "home": self.homes}


@cache
def lexicon() -> Lexicon:
    """Return the lexicon that ships with the package; read and checked once.

    Raises:
        UsageError: If it was changed into one that cannot work.
    """
    return parse_lexicon(files("unspoken.identity").joinpath("lexicon.yaml").read_bytes())


def parse_lexicon(data: bytes, described: str = "lexicon.yaml") -> Lexicon:
    """Return the lexicon that a YAML text holds, once every rule has been checked.

    Args:
        data: The YAML text in UTF-8.
        described: What to call it in messages.

    Raises:
        UsageError: If it is no lexicon, or breaks a rule: the message says which entry and how.
    """
    hint = "Correct the entry; the rules stand in unspoken/identity/lexicon.py."
    try:
        found = msgspec.convert(msgspec.yaml.decode(data), Lexicon)
    except msgspec.DecodeError as error:
        raise UsageError(f"The lexicon {described} is not valid: {error}.", hint) from error
    problems = list(chain(_of_names(found), _of_entries(found), _of_words(found)))
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UsageError(f"The lexicon {described} breaks a rule: {problems[0]}{more}.", hint)
    return found


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, in order; a possessive's `'s` and figures are left out."""
    return [word.removesuffix("'s") for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())]


def shared_words(one: str, other: str) -> frozenset[str]:
    """Return the content words of one text that another text has as well, in lower case.

    Function words and words of one or two letters do not count. Two words are the same when their first five letters
    are, or when one of four letters begins the other (`bake`, `baker`); of three letters, when at most a plural `s` is
    between them. Words that merely look alike (`counter`, `country`) count as shared; forms that do not look alike
    (`lose`, `lost`) are not found.
    """
    return _alike(one, _stems(other))


def _alike(text: str, stems: frozenset[str]) -> frozenset[str]:
    beginnings = {stem[:PREFIX_LETTERS] for stem in stems if len(stem) > PREFIX_LETTERS}

    def has(stem: str) -> bool:
        return (
            not stems.isdisjoint((stem, stem[:PREFIX_LETTERS], stem.removesuffix("s"), f"{stem}s"))
            or stem in beginnings
        )

    return frozenset(word for word in _content(text) if has(word[:STEM_LETTERS]))


def _content(text: str) -> Iterator[str]:
    return (word for word in words_of(text) if len(word) >= FEWEST_LETTERS and word not in FUNCTION_WORDS)


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:STEM_LETTERS] for word in _content(text))


def _of_names(found: Lexicon) -> Iterator[str]:
    if len({name.casefold() for name in found.names}) < len(found.names):
        yield "a name stands in it twice"
    yield from (f"'{name}' is not one word of letters" for name in found.names if not name.isalpha())
    pairs = len(found.roles) * len(found.traits)
    if len(found.names) > pairs:
        yield f"{len(found.names)} names have only {pairs} pairs of a role and a trait to share"


def _of_entries(found: Lexicon) -> Iterator[str]:
    for kind, entries in found.entries().items():
        for key, entry in entries.items():
            for text, problem in chain(_of_texts(kind, key, entry), _of_dialogue(key, entry)):
                yield f"{text} of the {kind} '{key}' {problem}"


def _of_texts(kind: Kind, key: str, entry: Entry) -> Iterator[tuple[str, str]]:
    length = HOME_WORDS if kind == "home" else FRAGMENT_WORDS
    texts = {"card": entry.card, "reworded": entry.reworded, "unshared": entry.unshared}
    for text, words in texts.items():
        named = 1 if kind == "role" and text != "unshared" else 0
        yield from _misfits(text, words, length, named)
        if text != "unshared" and not _has(key, words):
            yield text, "lacks the key word"
        if len(re.findall(r"[.!?](?=\s|$)", words)) != 1:
            yield text, "is not one sentence"
    yield from _misfits("memory", entry.memory, MEMORY_WORDS, 0)


def _of_dialogue(key: str, entry: Entry) -> Iterator[tuple[str, str]]:
    if isinstance(entry, Feature):
        yield from _misfits("dialogue", f"{entry.dialogue.user} {entry.dialogue.assistant}", EXCHANGE_WORDS, 0)
        if not _has(key, entry.dialogue.assistant):
            yield "dialogue", "lacks the key word in what the assistant says"


def _has(key: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(key)}\b", words.lower()) is not None


def _misfits(text: str, words: str, length: tuple[int, int], named: int) -> Iterator[tuple[str, str]]:
    fewest, most = length
    if not fewest <= len(words.split()) <= most:
        yield text, f"has {len(words.split())} words, {fewest} to {most} were expected"
    if words.count(NAME) != named or re.search(r"[{}]", words.replace(NAME, "")):
        yield text, f"has braces that are not {NAME} exactly {named} times"
    if not words.endswith((".", "!", "?")):
        yield text, "does not end a sentence"


def _of_words(found: Lexicon) -> Iterator[str]:
    kinds: tuple[Kind, ...] = get_args(Kind)
    entries = found.entries()
    cards = {kind: " ".join(entry.card.replace(NAME, "") for entry in entries[kind].values()) for kind in kinds}
    names = frozenset(word for name in found.names for word in words_of(name))
    for kind in kinds:
        beside = _stems(" ".join([*names, *(cards[other] for other in kinds if other != kind)]))
        for key, entry in entries[kind].items():
            shared = _alike(entry.unshared, beside | _stems(f"{key} {entry.card.replace(NAME, '')}"))
            if shared:
                yield f"unshared of the {kind} '{key}' has words of a card: {', '.join(sorted(shared))}"
            named = names.intersection(words_of(_all(entry)))
            if named:
                yield f"the {kind} '{key}' has a name in its texts: {', '.join(sorted(named))}"


def _all(entry: Entry) -> str:
    texts: list[str] = [entry.card, entry.reworded, entry.unshared, entry.memory]
    if isinstance(entry, Feature):
        texts += [entry.dialogue.user, entry.dialogue.assistant]
    return " ".join(texts).replace(NAME, "")
