"""C2C-C, the larger variant of C2C's fuser: the sender's layer is projected alone, then combined with the receiver's.

Source: Cache-to-Cache, arXiv 2510.03215, appendix A.1.3, there called *complex*.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unspoken.fusers.c2c import (
    KINDS,
    KV,
    annealed,
    arguments,
    flattened,
    in_heads,
    noisy_gate,
    require_fitting,
    uniform,
    with_gate,
    with_noisy_gate,
)


class C2CComplexFuser(nn.Module):
    """Add a combination of both models' columns to one receiver layer, with one gate for keys and values.

    For X in keys, values, heads flattened (arXiv 2510.03215, appendix A.1.3):

        p_X = projection_X(source_X)          three layers: SwiGLU and layer norm twice, then linear
        c_X = combiner_X([p_X, target_X])     linear
        w_X = sigmoid(weight_head_X(weight_hidden([target_K, c_K])))     per column and head, the net shared by both
        out_X = target_X + g w_X c_X

    The gate g is that of `C2CFuser`, but for its noise: one number for all columns and heads.

    Widths and names are settled here where the source leaves them open. `hidden_dim` is that of the projections and
    `weight_hidden_dim` that of the shared net; with 1,024 for both, the number of parameters is the published one.
    Each layer of a projection (SwiGLU, norm and dropout count as one) has a residual where it is as wide at its end as
    at its start; the shared net has none. Target and combination are joined within each head before the shared net.
    The layers' numbers in the state dict count a dropout only if there is one, as in the published weights.

    Args:
        source_dim: Size of one of the sender's heads.
        target_dim: Size of one of the receiver's heads.
        source_num_heads: The sender's KV heads.
        target_num_heads: The receiver's KV heads.
        hidden_dim: Width inside the projections.
        weight_hidden_dim: Width inside the net the weights come from.
        dropout: In training.
        initial_temperature: The gate's temperature at the first step.
        final_temperature: The same from `anneal_steps` on.
        anneal_steps: Steps over which it falls.
        dtype: Of parameters and buffer.

    Attributes:
        init_args: The arguments it was made with.

    Raises:
        UsageError: If a size, a temperature or the dropout makes no sense.
    """

    gate_temperature: Tensor
    init_args: dict[str, Any]

    def __init__(
        self,
        source_dim: int,
        target_dim: int,
        source_num_heads: int = 1,
        target_num_heads: int = 1,
        hidden_dim: int = 1024,
        weight_hidden_dim: int = 1024,
        dropout: float = 0.1,
        initial_temperature: float = 1.0,
        final_temperature: float = 0.001,
        anneal_steps: int = 1929,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.init_args = given
        self.gate_logit = nn.Parameter(torch.zeros((), dtype=dtype))
        self.register_buffer("gate_temperature", torch.tensor(initial_temperature, dtype=dtype))
        from_width, to_width = source_num_heads * source_dim, target_num_heads * target_dim
        self.key_projection = _Projection(from_width, hidden_dim, to_width, dropout, dtype)
        self.value_projection = _Projection(from_width, hidden_dim, to_width, dropout, dtype)
        self.weight_hidden = _WeightNet(2 * to_width, weight_hidden_dim, dropout, dtype)
        self.key_weight_head = nn.Linear(weight_hidden_dim, target_num_heads, dtype=dtype)
        self.value_weight_head = nn.Linear(weight_hidden_dim, target_num_heads, dtype=dtype)
        self.key_combiner = nn.Linear(2 * to_width, to_width, dtype=dtype)
        self.value_combiner = nn.Linear(2 * to_width, to_width, dtype=dtype)

    def forward(self, source: KV, target: KV, generator: torch.Generator | None = None) -> KV:
        """Return the receiver layer's keys and values, fused, in the dtype they came in.

        Args:
            source: Keys and values of the sender, each `[batch, source heads, seq, source head_dim]`.
            target: Those of the receiver, each `[batch, target heads, seq, target head_dim]`.
            generator: Where training's one number of gate noise is drawn from; torch's global one if None.

        Raises:
            UsageError: If shapes do not fit.
        """
        require_fitting(source, target, self.init_args)
        dtype = self.gate_logit.dtype
        keys, values = (
            self._combined(kind, mine.to(dtype), other.to(dtype))
            for kind, mine, other in zip(KINDS, source, target, strict=True)
        )
        hidden = self.weight_hidden(flattened(torch.cat([target[0].to(dtype), keys], -1)))
        heads = target[0].shape[1]
        weighted_keys = in_heads(self.key_weight_head(hidden).sigmoid(), heads), keys
        weighted_values = in_heads(self.value_weight_head(hidden).sigmoid(), heads), values
        if not self.training:
            return (
                with_gate(target[0], weighted_keys, self.gate_logit),
                with_gate(target[1], weighted_values, self.gate_logit),
            )
        noise = uniform((), target[0].device, generator)
        gate = noisy_gate(self.gate_logit, self.gate_temperature, noise)
        return with_noisy_gate(target[0], weighted_keys, gate), with_noisy_gate(target[1], weighted_values, gate)

    def update_temperature(self, step: int) -> None:
        """Set the gate's temperature for a training step; once per optimiser step.

        Raises:
            UsageError: If the step is below 0.
        """
        self.gate_temperature.fill_(annealed(step, self.init_args))

    def _combined(
        self,
        kind: str,
        source: Float[Tensor, "batch source_heads seq source_dim"],
        target: Float[Tensor, "batch heads seq head_dim"],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        projected = self.get_submodule(f"{kind}_projection")(flattened(source))
        combined = self.get_submodule(f"{kind}_combiner")(torch.cat([projected, flattened(target)], -1))
        return in_heads(combined, target.shape[1])


class _Projection(nn.Module):
    def __init__(self, start: int, hidden: int, end: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (start, hidden):
            layers += [_SwiGLU(width, hidden, dtype), nn.LayerNorm(hidden, dtype=dtype), *_dropout(dropout)]
        self.layers = nn.ModuleList([*layers, nn.Linear(hidden, end, dtype=dtype)])

    def forward(self, hidden: Float[Tensor, "batch seq start"]) -> Float[Tensor, "batch seq end"]:
        size = len(self.layers) // 2
        for first in range(0, len(self.layers), size):
            out = hidden
            for layer in self.layers[first : first + size]:
                out = layer(out)
            hidden = hidden + out if hidden.shape == out.shape else out
        return hidden


class _SwiGLU(nn.Module):
    def __init__(self, start: int, end: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(start, end, dtype=dtype)
        self.up_proj = nn.Linear(start, end, dtype=dtype)

    def forward(self, hidden: Float[Tensor, "batch seq start"]) -> Float[Tensor, "batch seq end"]:
        out: Tensor = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return out


class _WeightNet(nn.Module):
    def __init__(self, start: int, hidden: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(start, hidden, dtype=dtype),
            nn.LayerNorm(hidden, dtype=dtype),
            nn.GELU(),
            *_dropout(dropout),
            nn.Linear(hidden, hidden, dtype=dtype),
        )

    def forward(self, inputs: Float[Tensor, "batch seq start"]) -> Float[Tensor, "batch seq hidden"]:
        out: Tensor = self.layers(inputs)
        return out


def _dropout(rate: float) -> list[nn.Module]:
    # The published ModuleLists count a dropout only where there is one.
    return [nn.Dropout(rate)] if rate > 0 else []
