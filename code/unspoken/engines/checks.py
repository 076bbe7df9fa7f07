"""What every engine refuses before it computes, in the same words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unspoken.cache import KVCache
from unspoken.engines.protocol import PLAIN, Limits, Prompt, Turn
from unspoken.errors import ContextOverflow, IncompatibleCache, UsageError
from unspoken.manifest import require_compatible
from unspoken.spec import ModelSpec


def require_injectable(cache: KVCache, spec: ModelSpec) -> None:
    """Refuse a cache that this model cannot go on from.

    Raises:
        IncompatibleCache: If another model made it, RoPE is not applied or layers are missing.
    """
    require_compatible(cache.spec, spec)
    info = cache.manifest
    complete = tuple(layer.index for layer in info.layers) == tuple(range(spec.layers))
    if info.rope != "applied" or not complete:
        raise IncompatibleCache(
            f"The cache has RoPE {info.rope} and {len(info.layers)} of {spec.layers} layers.",
            "Apply RoPE and keep every layer before injecting it; a layer may hold fewer columns.",
        )


def require_even(cache: KVCache, engine: str) -> None:
    """Refuse a cache whose layers hold different numbers of columns, for an engine whose layers cannot.

    Raises:
        IncompatibleCache: If they differ.
    """
    counts = sorted({layer.columns for layer in cache.layers})
    if len(counts) != 1:
        raise IncompatibleCache(
            f"The cache's layers hold {counts[0]} to {counts[-1]} columns; in '{engine}' all layers hold as many.",
            "Use the transformers engine for it, or keep as many columns in every layer.",
        )


def require_alike(cache: KVCache, engine: str) -> None:
    """Refuse a cache whose layers hold columns of different positions, for an engine that could not keep them apart.

    Raises:
        IncompatibleCache: If they differ.
    """
    first = cache.layers[0].positions
    if any(layer.positions is not first and not layer.positions.equal(first) for layer in cache.layers):
        raise IncompatibleCache(
            f"The cache's layers hold columns of different positions; '{engine}' keeps one position for all layers.",
            "Use the transformers engine for it, or keep the same columns in every layer.",
        )


def require_plain(turns: Sequence[Turn], engine: str) -> None:
    """Refuse turns that are not read as the next tokens in causal order, for an engine that can do nothing else.

    Raises:
        UsageError: If there is one.
    """
    if any(turn.onset != PLAIN for turn in turns):
        raise UsageError(
            f"The engine '{engine}' cannot read a prompt at another position, past its causal mask or with a graft.",
            "Use the transformers engine for this channel.",
        )


def first_position(prompt: Prompt, past: KVCache | None, start: int | None, spec: ModelSpec) -> int:
    """Return the position of a prompt's first token: the one asked for, or the one after `past`.

    Raises:
        UsageError: If the prompt is empty or would start before `past` ends.
        ContextOverflow: If it does not fit the model.
    """
    after = 0 if past is None else past.next_position
    first = after if start is None else start
    if first < after:
        raise UsageError(
            f"A prompt cannot start at position {first}: the columns before it end at {after}.",
            f"Give a start of {after} or more.",
        )
    require_room(first, len(prompt.token_ids), spec)
    return first


def require_room(first: int, tokens: int, spec: ModelSpec) -> None:
    """Refuse what needs no or too many positions.

    Raises:
        UsageError: If there is no token.
        ContextOverflow: If positions would pass the model's context.
    """
    if tokens < 1:
        raise UsageError("The prompt is empty: it has no token.", "Give a text with at least one word.")
    if first + tokens > spec.context:
        raise ContextOverflow(
            f"The prompt needs {first + tokens} positions; '{spec.name}' was made for {spec.context}.",
            "Shorten the document or the question, or use a model with a longer context.",
        )


def require_turns(turns: Sequence[Turn], limits: Limits) -> None:
    """Refuse a call that asks for nothing.

    Raises:
        UsageError: If there is no turn, no token may be made, or a stop string is empty and ends every answer.
    """
    if "" in limits.stop:
        raise UsageError("A stop string is empty: it would end every answer at once.", "Leave it out.")
    if not turns or limits.new_tokens < 1:
        raise UsageError("There is nothing to answer.", "Give at least one turn and one new token.")


def option_tokens(
    turn: Turn, limits: Limits, spec: ModelSpec, encode: Callable[[str], tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of a turn's options, once the turn is known to fit the model with the longest of them.

    Raises:
        UsageError: If an option has no token.
        ContextOverflow: If prompt and answer, or prompt and longest option, do not fit.
    """
    options = tuple(encode(option) for option in turn.options)
    if any(not option for option in options):
        raise UsageError("An option is empty: it has no token.", "Give options with at least one word.")
    first = first_position(turn.prompt, turn.past, turn.onset.position, spec)
    longest = max((len(option) for option in options), default=0)
    require_room(first, len(turn.prompt.token_ids) + max(limits.new_tokens, longest), spec)
    return options
