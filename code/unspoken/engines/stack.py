"""A transformers model as a stack of layers that can be run by themselves, and watched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unspoken.cache import KVLayer
from unspoken.engines.protocol import Graft
from unspoken.errors import UnsupportedModel, UsageError


class Stack:
    """The parts of a decoder: embeddings, layers, final norm, head.

    Args:
        model: A causal language model of transformers built as Llama is.

    Raises:
        UnsupportedModel: If its parts have other names.
    """

    def __init__(self, model: nn.Module) -> None:
        base = getattr(model, "model", None)
        parts = ("embed_tokens", "layers", "norm", "rotary_emb")
        if base is None or not all(hasattr(base, part) for part in parts) or not hasattr(model, "lm_head"):
            raise UnsupportedModel(
                f"The layers of a {type(model).__name__} cannot be run by themselves: it is not built as Llama is.",
                "Use a channel that hands over whole columns, such as kv.",
            )
        self.base, self.head = cast(Any, base), cast(Any, model.lm_head)

    @property
    def device(self) -> torch.device:
        """Where the layers compute."""
        return cast(torch.device, self.base.embed_tokens.weight.device)

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int]) -> Float[Tensor, "new hidden"]:
        """Return what enters the first layer for some tokens."""
        return cast(Tensor, self.base.embed_tokens(torch.tensor(token_ids, device=self.device))).cpu()

    @torch.inference_mode()
    def finish(self, residuals: Float[Tensor, "new hidden"]) -> Float[Tensor, "new hidden"]:
        """Return residuals after the final norm."""
        return cast(Tensor, self.base.norm(residuals.to(self.device))).cpu()

    @torch.inference_mode()
    def through(
        self,
        residuals: Float[Tensor, "new hidden"],
        layers: Sequence[KVLayer],
        at: Int[Tensor, " new"],
        positions: Int[Tensor, " new"],
    ) -> tuple[Float[Tensor, "new hidden"], list[KVLayer]]:
        """Run residuals through neighbouring layers; see `unspoken.engines.capabilities.Layered`."""
        _require_neighbours(layers, len(self.base.layers))
        hidden = residuals.to(self.device)[None]
        places = positions.to(self.device, torch.int64)[None]
        turned = self.base.rotary_emb(hidden, position_ids=places)
        made = []
        for layer in layers:
            slots = Slots(layer, at, positions, hidden.device, hidden.dtype)
            hidden = self.base.layers[layer.index](
                hidden,
                attention_mask=_causal(slots.positions, positions, hidden.dtype).to(hidden.device),
                position_ids=places,
                past_key_values=slots,
                use_cache=True,
                position_embeddings=turned,
            )
            made.append(slots.layer())
        return hidden[0].cpu(), made

    @contextmanager
    def grafted(self, grafts: Mapping[int, Graft]) -> Iterator[None]:
        """Change residuals while the block runs: for a token's index in the forward pass, what it is given."""

        def changed(graft: Graft, at: int) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
                hidden = args[0].clone()
                mine, other = hidden[0, at], graft.residual.to(hidden.device, hidden.dtype)
                hidden[0, at] = {"replace": other, "sum": mine + other, "mean": (mine + other) / 2}[graft.how]
                return (hidden, *args[1:])

            return self.base.layers[graft.layer].register_forward_pre_hook(hook)

        hooks = [changed(graft, at) for at, graft in grafts.items()]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()


class Slots:
    """One layer's columns, as the cache of that layer alone, which new columns are written into.

    Args:
        layer: The columns it starts from, copied.
        at: Where each new column goes.
        positions: The new columns' positions.
        device: Where the layer computes.
        dtype: What it computes in.
    """

    def __init__(
        self,
        layer: KVLayer,
        at: Int[Tensor, " new"],
        positions: Int[Tensor, " new"],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        kv_heads, columns, head_dim = layer.keys.shape
        total = max(columns, int(at.max()) + 1)
        self._index, self._kind, self._at = layer.index, layer.kind, at.to(device)
        self._keys = torch.empty((1, kv_heads, total, head_dim), dtype=dtype, device=device)
        self._values = torch.empty_like(self._keys)
        self._keys[0, :, :columns], self._values[0, :, :columns] = layer.keys, layer.values
        self.positions = torch.empty(total, dtype=torch.int32)
        self.positions[:columns] = layer.positions
        self.positions[at] = positions.to(torch.int32)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new columns and return all; transformers calls it from within a layer."""
        self._keys[:, :, self._at], self._values[:, :, self._at] = keys, values
        return self._keys, self._values

    def layer(self) -> KVLayer:
        """Return the columns as they are now."""
        return KVLayer(self._index, self._keys[0].cpu(), self._values[0].cpu(), self.positions, self._kind)


def _causal(
    columns: Int[Tensor, " total"], positions: Int[Tensor, " new"], dtype: torch.dtype
) -> Float[Tensor, "1 1 new total"]:
    """Return the mask that lets a token see the columns at its position and before."""
    hidden = columns[None, :] > positions[:, None]
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[None, None]


def _require_neighbours(layers: Sequence[KVLayer], count: int) -> None:
    indices = [layer.index for layer in layers]
    if not indices or indices != list(range(indices[0], indices[0] + len(indices))) or indices[-1] >= count:
        raise UsageError(
            f"Layers {indices} of a model of {count} cannot be run one after the other.", "Give neighbouring layers."
        )


class Weights:
    """Remembers how much the last tokens of a forward pass attend to the first columns, layer by layer.

    Args:
        probes: How many tokens.
        columns: How many columns.
    """

    def __init__(self, probes: int, columns: int) -> None:
        self._probes, self._columns = probes, columns
        self.by_layer: dict[int, Float[Tensor, "heads probes past"]] = {}

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "heads new head_dim"],
        key: Float[Tensor, "kv_heads total head_dim"],
        mask: Float[Tensor, "new total"],
        scaling: float,
    ) -> None:
        """Keep the weights of one layer."""
        queries = query[:, -self._probes :].to(torch.float32)
        keys = key.to(torch.float32).repeat_interleave(query.shape[0] // key.shape[0], dim=0)
        scores = queries @ keys.transpose(1, 2) * scaling + mask[-self._probes :].to(torch.float32)
        self.by_layer[layer] = scores.softmax(dim=-1)[..., : self._columns].cpu()
