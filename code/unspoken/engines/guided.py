"""Read tokens on top of columns so that gradients find their way back to the columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unspoken.engines.batch import Layout, additive
from unspoken.engines.protocol import Engine
from unspoken.errors import UsageError

Columns = tuple[Float[Tensor, "kv_heads past head_dim"], Float[Tensor, "kv_heads past head_dim"]]
"""Keys, turned to their positions, and values of one layer."""


@runtime_checkable
class Guiding(Protocol):
    """An engine that shows how its answers depend on the columns it reads on top of."""

    def guided(
        self, past: Sequence[Columns], layout: Layout, keep: Int[Tensor, " kept"], heard: list[Tensor] | None = None
    ) -> Float[Tensor, "kept vocab"]:
        """Return float32 logits at some tokens of a layout, with the graph that leads back to the columns.

        Args:
            past: Every layer's columns.
            layout: What is read; its mask covers the columns first.
            keep: Which tokens' logits are wanted.
            heard: Is given what each layer's attention comes to, `[new, hidden]`, layer by layer, if it is a list.
        """
        ...


def guiding(engine: Engine) -> Guiding:
    """Return an engine as one that gradients pass through.

    Raises:
        UsageError: If they do not.
    """
    if not isinstance(engine, Guiding):
        raise UsageError(
            f"A fuser cannot be trained with the engine '{engine.name}': gradients do not pass through it.",
            "Use the transformers engine for the receiver.",
        )
    return engine


def guided(
    model: Any, past: Sequence[Columns], layout: Layout, keep: Int[Tensor, " kept"], heard: list[Tensor] | None = None
) -> Float[Tensor, "kept vocab"]:
    """Do what `Guiding.guided` says with a model of transformers; its weights are frozen, once and for all."""
    from transformers import DynamicCache

    model.requires_grad_(False)
    weight = model.get_input_embeddings().weight
    inner = DynamicCache()
    for index, (keys, values) in enumerate(past):
        inner.update(keys[None].to(weight.device, weight.dtype), values[None].to(weight.device, weight.dtype), index)
    with _listening(model, heard):
        logits: Tensor = model(
            input_ids=layout.token_ids[None].to(weight.device),
            position_ids=layout.positions[None].to(weight.device),
            attention_mask=additive(layout.allowed, weight.dtype).to(weight.device),
            past_key_values=inner,
            use_cache=True,
            logits_to_keep=keep.to(weight.device),
            gaps=None,
            watch=None,
        ).logits
    return logits[0].to("cpu", torch.float32)


@contextmanager
def _listening(model: Any, heard: list[Tensor] | None) -> Iterator[None]:
    """Append each layer's attention output to a list while the block runs."""
    hooks = []
    if heard is not None:
        for layer in cast(Any, model.model).layers:

            def hook(_: nn.Module, __: Any, made: Any) -> None:
                heard.append(made[0][0])

            hooks.append(layer.self_attn.register_forward_hook(hook))
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
