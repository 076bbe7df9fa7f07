"""Names of channels with their options: the same in Python, in YAML and on the command line.

    name [: part]... [@ amount] [+ codec [+ blosc2]]

    text@32    kv    kv+int8    need@0.3+int8    need:backfill=2@0.3    compose:blend@0.15    layers:published@0.7

`@` is how much: tokens of a message, a share of columns or layers, latent steps. A part is the variant of the channel,
or `key=value`. `+` is how columns are coded on the wire.
"""

from __future__ import annotations

import math
from inspect import signature
from typing import Any

from unspoken.channels.protocol import Channel
from unspoken.errors import UsageError

EXAMPLES = "Write text@32, kv+int8, need@0.3+int8, compose:blend@0.15 or layers@0.7."


def parse_channel(text: str) -> tuple[str, dict[str, Any]]:
    """Read a channel's name with options; values stay text.

    Raises:
        UsageError: If an option is empty or given twice.
    """
    head, plus, codec = text.partition("+")
    head, at, amount = head.partition("@")
    name, *parts = head.split(":")
    options: dict[str, Any] = {}
    found = [("variant" if not equals else key, value if equals else key) for key, equals, value in _cut(parts)]
    if at:
        found.append(("amount", amount))
    if plus:
        found.append(("codec", codec))
    for key, value in found:
        if not key or not value:
            raise UsageError(f"The channel '{text}' ends where an option should follow.", EXAMPLES)
        if key in options:
            raise UsageError(f"The channel '{text}' has two options '{key}'.", EXAMPLES)
        options[key] = value
    return name, options


def build_channel(text: str) -> Channel:
    """Return the channel of a name with options.

    Raises:
        UsageError: If the name is unknown or does not take the options.
    """
    from unspoken.channels import CHANNELS

    name, options = parse_channel(text)
    kind = CHANNELS.load(name)
    known = signature(kind).parameters
    strange = [option for option in options if option not in known]
    if strange:
        raise UsageError(
            f"The channel '{name}' has no option '{strange[0]}', found in '{text}'.",
            f"It takes {', '.join(known) or 'none'}. {EXAMPLES}",
        )
    channel: Channel = kind(**options)
    return channel


def labelled(
    name: str,
    /,
    *,
    variant: str | None = None,
    amount: float | int | str | None = None,
    codec: str | None = None,
    **others: object,
) -> str:
    """Return a channel's name with options, as it is written in experiments; what is None is left out."""
    found = [f"{key}={_spelt(value)}" for key, value in others.items() if value is not None]
    parts = [name, *([variant] if variant else []), *found]
    return ":".join(parts) + (f"@{_spelt(amount)}" if amount is not None else "") + (f"+{codec}" if codec else "")


def share(channel: str, amount: float | int | str | None, default: float | None = None) -> float:
    """Return an amount as a share above 0 and at most 1.

    Raises:
        UsageError: If it is none.
    """
    value = _number(amount if amount is not None else default)
    if value is None or not 0 < value <= 1:
        raise UsageError(
            f"'{amount}' is no share for the channel '{channel}'.", f"Write {channel}@0.3: above 0 and at most 1."
        )
    return value


def count(channel: str, amount: float | int | str | None, default: int, least: int = 0, sign: str = "@") -> int:
    """Return an amount as a whole number.

    Args:
        channel: The channel's name, for messages.
        amount: The number.
        default: What is meant by none.
        least: The smallest that will do.
        sign: What stands between name and number.

    Raises:
        UsageError: If it is none, or less than the least.
    """
    value = _number(amount if amount is not None else default)
    if value is None or value != int(value) or value < least:
        raise UsageError(
            f"'{amount}' is no number for the channel '{channel}'.",
            f"Write {channel}{sign}{max(least, default)}: a whole number of {least} or more.",
        )
    return int(value)


def _cut(parts: list[str]) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in parts]


def _spelt(value: object) -> str:
    """Return an option's value as text; Python writes 1e+16, and a plus begins a codec."""
    return str(value).replace("+", "") if isinstance(value, float) else str(value)


def _number(value: float | int | str | None) -> float | None:
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
