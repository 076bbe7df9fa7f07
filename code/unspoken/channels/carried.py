"""Take up what another process has left in a store; read the text instead where it is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from unspoken.cache import KVCache
from unspoken.channels.kv import received
from unspoken.channels.protocol import Delivery, Party, stopwatch
from unspoken.channels.text import read_by
from unspoken.engines.protocol import Engine, Piece, Prompt
from unspoken.errors import CacheFileError, TransportFailed
from unspoken.transports import Arrived, Judge, open_transport


@dataclass(frozen=True)
class Taken:
    """What a receiver starts from, and why that is the text, if it is.

    Attributes:
        delivery: What it cost.
        lost: Why no cache came; None if it did.
    """

    delivery: Delivery
    lost: TransportFailed | CacheFileError | None = None


def take_up(
    receiver: Party,
    address: str,
    key: str,
    *,
    judge: Judge | None = None,
    ready: Callable[[KVCache], object] | None = None,
    text: str | None = None,
) -> Taken:
    """Return what a receiver starts from once it has got what was put under a key.

    A store that is not there, has lost the cache or brings a damaged one costs the saving and nothing else, where the
    sender gives its text along. A cache that is refused for its seal or its model is refused all the same.

    Args:
        receiver: Who gets it.
        address: Where it was left, see `unspoken.transports`.
        key: What it was left under.
        judge: Looks at its header, a seal in it, before any column moves.
        ready: Sees to it that the cache can be used, before it is: `unspoken.api.open_to`, say.
        text: What the sender has read, to be read instead.

    Raises:
        TransportFailed: If it does not come, and there is no text.
        CacheFileError: If what comes is damaged, and there is no text.
        IncompatibleCache: If another model made it.
        UnspokenError: What `judge` or `ready` refuses it with.
    """
    took: dict[str, float] = {}
    try:
        with stopwatch(took, "move"), open_transport(address) as transport:
            arrived = transport.get(key, judge)
    except (TransportFailed, CacheFileError) as error:
        if text is None:
            raise
        return Taken(read_by(receiver, [text], "full-text", took, lossy=False), error)
    if ready is not None:
        ready(arrived.cache)
    with stopwatch(took, "inject"):
        cache = completed(arrived, receiver.engine)
    delivery = received(cache, receiver, arrived.bytes_moved)
    read = len(arrived.missing)
    return Taken(
        replace(
            delivery,
            tokens_prefilled=delivery.tokens_prefilled + read,
            tokens_skipped=delivery.tokens_skipped - read,
            seconds=replace(delivery.seconds, move=took["move"], inject=delivery.seconds.inject + took["inject"]),
        )
    )


def completed(arrived: Arrived, engine: Engine) -> KVCache:
    """Return the columns that came with those of the tokens behind them that did not, read again."""
    if not arrived.missing:
        return arrived.cache
    return engine.prefill(Prompt((Piece("content", arrived.missing),)), arrived.cache)
