"""The provider `unspoken` of Inspect: its entry point.

inspect eval task.py --model unspoken/smollm2-135m -M channel=kv
"""

from __future__ import annotations

from inspect_ai.model import ModelAPI, modelapi


@modelapi(name="unspoken")  # type: ignore[untyped-decorator]  # Inspect is not read for types.
def unspoken() -> type[ModelAPI]:
    """Return the provider; torch is loaded only now."""
    from unspoken.harness.inspect_model import PairAPI

    return PairAPI
