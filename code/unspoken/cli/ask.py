"""`unspoken ask`: one question to an agent that starts from another's cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import msgspec

from unspoken.cachefile.header import Header, peek, printable
from unspoken.cli.common import (
    agent,
    as_json,
    human_bytes,
    model_options,
    opened,
    print_json,
    read_text,
    require_text,
    require_whole,
)
from unspoken.cli.trusting import judged
from unspoken.errors import UsageError

if TYPE_CHECKING:
    from unspoken.cache import KVCache
    from unspoken.session import Agent, Reply

SENDERS = ("lyra", "cc", "vera", "sender-4", "sender-5", "sender-6", "sender-7", "sender-8")


@click.command()
@click.argument("question")
@click.option("--cache", "cache_file", help="Cache file to start from; with --from, the key it was left under.")
@click.option("--from", "store", help="Store to get the cache from: shm, file:FOLDER (see `unspoken store`).")
@click.option("--or", "instead", help="Document to read instead, should the store have lost the cache.")
@click.option("--trusted", is_flag=True, help="Refuse a cache file that no trusted sender has sealed.")
@click.option(
    "--about",
    multiple=True,
    help="Document a sender reads first (a text file, or - for standard input); once for each sender.",
)
@click.option(
    "--channel",
    help="How it is handed over, with --about: kv+int8, need@0.3, compose:blend@0.15, text@32 ...  [default: kv]",
)
@click.option(
    "--sender", multiple=True, help="Name of the agent that reads, once for each --about.  [default: lyra, cc, ...]"
)
@click.option("--agent", "name", default="vera", show_default=True, help="Name of the agent that answers.")
@click.option("--card", type=click.Path(), help="YAML card of the agent that answers, instead of a name.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Most tokens of the answer.")
@model_options
@as_json
def ask(
    question: str,
    cache_file: str | None,
    store: str | None,
    instead: str | None,
    trusted: bool,
    about: tuple[str, ...],
    channel: str | None,
    sender: tuple[str, ...],
    name: str,
    card: str | None,
    tokens: int,
    model: str,
    engine: str,
    loading: dict[str, Any],
    as_json: bool,
) -> None:
    """Ask QUESTION of an agent that starts from a cache file (--cache) or is handed a document (--about)."""
    require_subject(cache_file, trusted, about, channel)
    require_store(cache_file, store, instead)
    if not question.strip():
        raise UsageError("The question is empty.", "Ask something.")
    require_text(question, "question")
    for each in (name, *sender):
        require_text(each, "agent's name")
    # A bad file is told at once, not after the model has loaded.
    header = None if cache_file is None or store is not None else (judged if trusted else peek)(cache_file)
    text = None if instead is None else read_text(instead)
    documents, names = read_texts(about), senders(sender, len(about), name)
    loaded, _ = opened(model, engine, loading)
    answering = agent(name, card, loaded)
    if cache_file is not None and store is not None:
        reply = from_store(answering, question, store, cache_file, trusted, text, model, tokens)
    elif cache_file is not None:
        reply = from_file(answering, question, cache_file, header, model, tokens)
    else:
        from unspoken.session import Session

        if not sender:
            names = senders((), len(about), answering.name)  # A card may bring another name.
        talk = Session(
            *(agent(each, None, loaded) for each in names), answering, channel="kv" if channel is None else channel
        )
        texts = dict(zip(names, documents, strict=True))
        reply = talk.ask(answering.name, question, about=texts, new_tokens=tokens)
    show(reply, as_json)


def require_subject(cache_file: str | None, trusted: bool, about: Sequence[str], channel: str | None) -> None:
    """Refuse a question about nothing or two things, and options that say nothing of what it is about.

    Raises:
        UsageError: If it is such a one.
    """
    if (cache_file is None) == (not about):
        raise UsageError("The question needs one thing to be about.", "Give either --cache FILE or --about DOCUMENT.")
    if cache_file is not None and channel is not None:
        raise UsageError(f"A cache file is not handed over by '{channel}'.", "Leave --channel out, or give --about.")
    if cache_file is None and trusted:
        raise UsageError("There is no file whose seal could be verified.", "Give --cache, or leave --trusted out.")


def require_store(cache_file: str | None, store: str | None, instead: str | None) -> None:
    """Refuse a store without a key, and a document for want of a store.

    Raises:
        UsageError: If it is such a one.
    """
    if store is not None and cache_file is None:
        raise UsageError("Nothing of the store is asked for.", "Give the key as --cache.")
    if store is None and instead is not None:
        raise UsageError("A file is there or is not; a document stands in for a store.", "Give --from, or --about.")


def from_file(answering: Agent, question: str, file: str, header: Header | None, model: str, tokens: int) -> Reply:
    """Return an agent's answer on top of a cache file; what it cost is the payload that lies in the file."""
    from unspoken.api import open_to
    from unspoken.cachefile import read_packed
    from unspoken.channels.kv import packed_bytes
    from unspoken.transforms.codecs import codec_named

    packed = read_packed(file, header=header)
    cache = codec_named(packed.manifest.dtype).unpack(packed)
    require_whole(cache)
    open_to(cache, model, answering.engine)
    return answering.ask_cache(question, cache, new_tokens=tokens, bytes_moved=packed_bytes(packed))


def from_store(
    answering: Agent, question: str, address: str, key: str, trusted: bool, text: str | None, model: str, tokens: int
) -> Reply:
    """Return an agent's answer on top of what was left in a store, or of the text if that is lost."""
    from unspoken.api import open_to
    from unspoken.channels.carried import take_up
    from unspoken.cli.store import judge
    from unspoken.engines.protocol import Limits
    from unspoken.session import BRIEFLY

    def ready(cache: KVCache) -> None:
        require_whole(cache)
        open_to(cache, model, answering.engine)

    taken = take_up(answering, address, key, judge=judge(trusted), ready=ready, text=text)
    if taken.lost is not None:
        click.echo(f"The document is read instead. {printable(taken.lost.problem)}", err=True)
    (reply,) = answering.answer([BRIEFLY.format(question=question.strip())], [taken.delivery], Limits(tokens))
    return reply


def read_texts(paths: Sequence[str]) -> list[str]:
    """Return the content of text files.

    Raises:
        UsageError: If standard input stands for two of them.
    """
    if paths.count("-") > 1:
        raise UsageError("Standard input can be read once only.", "Give --about - once, and files for the rest.")
    return [read_text(each) for each in paths]


def senders(given: tuple[str, ...], documents: int, receiver: str) -> tuple[str, ...]:
    """Return a name for the reader of each document.

    Raises:
        UsageError: If another number of names was given, or one twice.
    """
    names = given or tuple(name for name in SENDERS if name != receiver)[:documents]
    if len(names) != documents or len(set(names)) != documents:
        raise UsageError(
            f"There are {documents} documents and the senders {', '.join(names) or 'none'}.",
            "Give --sender once for each --about, with different names.",
        )
    return names


def show(reply: Reply, as_json: bool) -> None:
    """Print an answer and what it cost."""
    delivery = reply.delivery
    if as_json:
        print_json(
            {
                "answer": reply.text,
                "channel": delivery.channel,
                "bytes_moved": delivery.bytes_moved,
                "tokens_prefilled": delivery.tokens_prefilled,
                "tokens_skipped": delivery.tokens_skipped,
                "recomputed": delivery.recomputed,
                "seconds": asdict(delivery.seconds) | {"total": delivery.seconds.total},
                "lossy": delivery.lossy,
                "lineage": [msgspec.to_builtins(step) for step in delivery.lineage],
                "message": delivery.message,
            }
        )
        return
    click.echo(reply.text)
    until = delivery.seconds.total - delivery.seconds.answer
    click.echo(
        f"[{delivery.channel}: {human_bytes(delivery.bytes_moved)} moved, {delivery.tokens_prefilled} tokens read, "
        f"{delivery.tokens_skipped} skipped, first token after {until:.2f} s]",
        err=True,
    )
