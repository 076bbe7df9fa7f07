"""What a cache is: its model, its columns and its history, and how two of these differ."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from unspoken.errors import IncompatibleCache
from unspoken.spec import ModelSpec, fingerprint

SpanKind = Literal["sink", "system", "content", "thought", "template"]
LayerKind = Literal["full", "sliding"]
RopeState = Literal["applied", "removed"]
Severity = Literal["fatal", "lossy", "note"]


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of columns of one kind: `start` is in, `stop` is out."""

    kind: SpanKind
    start: int
    stop: int

    def shifted(self, columns: int) -> Span:
        """Return the same run, further on by a number of columns."""
        return Span(self.kind, self.start + columns, self.stop + columns)


class LayerInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One layer of a cache: its index in the model, its kind, and how many columns it holds."""

    index: int
    kind: LayerKind
    columns: int


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing that was done to a cache: a registered name and JSON-able arguments."""

    op: str
    args: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description that travels with a cache.

    Attributes:
        spec: The model that made it.
        dtype: Element type of keys and values ("float32", "bfloat16", "float16"), or what they are packed as ("int8",
            "int4", "q8_0", "q4_0"); see `unspoken.layout`.
        layers: One entry per layer held.
        rope: Whether the keys are turned to their positions (`applied`) or position-free (`removed`).
        spans: What the columns are; ranges over the columns of a full layer.
        token_ids: The tokens behind the columns, or None where the sender keeps them to itself.
        lineage: What was done to the cache, oldest first.
        sender: Name of the agent that made it, for display; not proven by anything in here.
    """

    spec: ModelSpec
    dtype: str
    layers: tuple[LayerInfo, ...]
    rope: RopeState
    spans: tuple[Span, ...] = ()
    token_ids: tuple[int, ...] | None = None
    lineage: tuple[Step, ...] = ()
    sender: str | None = None

    def engines(self) -> frozenset[str]:
        """Return the names of the engines that computed columns of this cache."""
        steps = [step for step in self.lineage if step.op == "prefill"]
        # Files of the first release do not say it; there was but one engine then.
        return frozenset(str(step.args.get("engine", "transformers")) for step in steps)


class Mismatch(msgspec.Struct, frozen=True):
    """One difference between a cache's model and another: which field, both values, how bad."""

    field: str
    severity: Severity
    found: str
    expected: str


_SEVERITY: dict[str, Severity] = {
    "family": "fatal",
    "layers": "fatal",
    "kv_heads": "fatal",
    "head_dim": "fatal",
    "rope": "fatal",
    "weights": "fatal",
    "architecture": "fatal",
    "vocabulary": "fatal",
    "tokenizer": "fatal",
    "context": "note",
    "chat_template": "lossy",
}


def compare(made_by: ModelSpec, read_by: ModelSpec) -> list[Mismatch]:
    """List what differs between the model that made a cache and the one that shall read it.

    Names and paths are not compared. `fatal` means the cache must not be injected, `lossy`
    that it works but means something slightly different, `note` that it is worth knowing.
    """
    found = []
    for field, severity in _SEVERITY.items():
        left, right = getattr(made_by, field), getattr(read_by, field)
        if left != right and not (field == "rope" and made_by.rope.equals(read_by.rope)):
            found.append(Mismatch(field, severity, _show(left), _show(right)))
    return found


def require_compatible(made_by: ModelSpec, read_by: ModelSpec) -> None:
    """Refuse a cache that another model made.

    Raises:
        IncompatibleCache: With every fatal difference in the message.
    """
    fatal = [each for each in compare(made_by, read_by) if each.severity == "fatal"]
    if fatal:
        listed = "; ".join(f"{each.field} is {each.found}, the model has {each.expected}" for each in fatal)
        raise IncompatibleCache(
            f"The cache was made by '{made_by.name}' and does not fit '{read_by.name}': {listed}.",
            "Use the model that made it, or run `unspoken verify FILE --for MODEL` for every difference.",
        )


def _show(value: object) -> str:
    """Shorten what would fill the screen: a RoPE is told apart by its kind and first frequencies."""
    if isinstance(value, msgspec.Struct) and hasattr(value, "inverse_frequencies"):
        middle = value.inverse_frequencies[len(value.inverse_frequencies) // 2]
        told = fingerprint(msgspec.json.encode(value))[:8]
        dims = 2 * len(value.inverse_frequencies)
        return f"{getattr(value, 'kind', '?')} RoPE over {dims} dims ({middle:.3g} in the middle, {told})"
    return str(value)
