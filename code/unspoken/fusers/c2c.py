"""C2C's fuser: one receiver layer's cache, with a gated projection of another model's added to it.

Source: Cache-to-Cache, arXiv 2510.03215, and the formulae its weights were trained with (thu-nics/C2C, Apache-2.0).
Names of arguments and of the state dict's entries are those of the published weights, which load as they are.
Keys come as caches hold them, with RoPE applied: the map has to learn the positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from unspoken.errors import UsageError

KV: TypeAlias = tuple[Float[Tensor, "..."], Float[Tensor, "..."]]
Weighted: TypeAlias = tuple[Float[Tensor, "batch heads seq 1"], Float[Tensor, "batch heads seq head_dim"]]
KINDS = ("key", "value")
TINY = 1e-20  # Keeps both logarithms of the Gumbel noise finite.
LAYERS = (3, 256)
MOST = 1 << 20  # Wider is a broken file rather than a model.


class C2CFuser(nn.Module):
    """Add to one receiver layer's keys and values what a sender's layer has to say about the same columns.

    For keys and for values, each with weights of their own (arXiv 2510.03215, section 3.3; widths as published):

        x = [source, target], heads flattened        h = mlp1(in(x))
        p = proj_out(proj_mlp2(h))                   w = sigmoid(scalar_head(scalar_mlp2(h))), per column and head
        out = target + g w p

    In evaluation the gate g is 1 where its logit is above 0, else the target comes out unchanged, bit for bit; a new
    fuser's logits are 0. In training g = sigmoid((logit + G) / T), G = -log(-log u), u uniform per column and head:
    one Gumbel variate, so that a logit of 0 is open more often (63 %) than not.

    Args:
        source_dim: Size of one of the sender's heads.
        target_dim: Size of one of the receiver's heads.
        source_num_heads: The sender's KV heads.
        target_num_heads: The receiver's KV heads.
        intermediate_dim: Inner width of the blocks, but for those of the weight w.
        hidden_dim: Width between the blocks, and inner width of those of w.
        num_layers: 3 or more; all but two are blocks of the projection.
        dropout: After each block, in training.
        initial_temperature: T at the first step.
        final_temperature: T from `anneal_steps` on.
        anneal_steps: Steps over which T falls.
        dtype: Of parameters and buffer.
        zero_init: Start from a projection of zeros.

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
        intermediate_dim: int = 1024,
        hidden_dim: int = 1024,
        num_layers: int = 3,
        dropout: float = 0.1,
        initial_temperature: float = 1.0,
        final_temperature: float = 0.001,
        anneal_steps: int = 1929,
        dtype: torch.dtype = torch.float32,
        zero_init: bool = False,
    ) -> None:
        given = arguments(locals())
        super().__init__()
        self.init_args = given
        self.key_gate_logit = nn.Parameter(torch.zeros((), dtype=dtype))
        self.value_gate_logit = nn.Parameter(torch.zeros((), dtype=dtype))
        self.register_buffer("gate_temperature", torch.tensor(initial_temperature, dtype=dtype))
        from_width, to_width = source_num_heads * source_dim, target_num_heads * target_dim
        stages: dict[str, Callable[[], nn.Module]] = {
            "in": lambda: nn.Linear(from_width + to_width, hidden_dim, dtype=dtype),
            "mlp1": lambda: _Stack(1, hidden_dim, intermediate_dim, dropout, dtype),
            "scalar_mlp2": lambda: _Stack(1, hidden_dim, hidden_dim, dropout, dtype),
            "scalar_head": lambda: nn.Linear(hidden_dim, target_num_heads, dtype=dtype),
            "proj_mlp2": lambda: _Stack(num_layers - 2, hidden_dim, intermediate_dim, dropout, dtype),
            "proj_out": lambda: nn.Linear(hidden_dim, to_width, dtype=dtype),
        }
        for stage, make in stages.items():
            for kind in KINDS:
                self.add_module(f"{kind}_{stage}", make())
        if zero_init:
            for kind in KINDS:
                for parameter in self._stage(kind, "proj_out").parameters():
                    nn.init.zeros_(parameter)

    def forward(self, source: KV, target: KV, generator: torch.Generator | None = None) -> KV:
        """Return the receiver layer's keys and values, fused, in the dtype they came in.

        Args:
            source: Keys and values of the sender, each `[batch, source heads, seq, source head_dim]`.
            target: Those of the receiver, each `[batch, target heads, seq, target head_dim]`.
            generator: Where training's gate noise is drawn from, keys' before values'; torch's global one if None.

        Raises:
            UsageError: If shapes do not fit.
        """
        require_fitting(source, target, self.init_args)
        weighted = [self._weighted(*each) for each in zip(KINDS, source, target, strict=True)]
        logits = (self.key_gate_logit, self.value_gate_logit)
        gated = partial(self._noisily, generator) if self.training else with_gate
        keys, values = (gated(*each) for each in zip(target, weighted, logits, strict=True))
        return keys, values

    def update_temperature(self, step: int) -> None:
        """Set the gate's temperature for a training step; once per optimiser step.

        Raises:
            UsageError: If the step is below 0.
        """
        self.gate_temperature.fill_(annealed(step, self.init_args))

    def _stage(self, kind: str, stage: str) -> nn.Module:
        return self.get_submodule(f"{kind}_{stage}")

    def _weighted(
        self,
        kind: str,
        source: Float[Tensor, "batch source_heads seq source_dim"],
        target: Float[Tensor, "batch heads seq head_dim"],
    ) -> Weighted:
        dtype = self.key_gate_logit.dtype
        inputs = torch.cat([flattened(source.to(dtype)), flattened(target.to(dtype))], -1)
        hidden = self._stage(kind, "mlp1")(self._stage(kind, "in")(inputs))
        projected = self._stage(kind, "proj_out")(self._stage(kind, "proj_mlp2")(hidden))
        weight = self._stage(kind, "scalar_head")(self._stage(kind, "scalar_mlp2")(hidden)).sigmoid()
        return in_heads(weight, target.shape[1]), in_heads(projected, target.shape[1])

    def _noisily(
        self,
        generator: torch.Generator | None,
        target: Float[Tensor, "batch heads seq head_dim"],
        weighted: Weighted,
        logit: Float[Tensor, ""],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        noise = uniform((*target.shape[:3], 1), target.device, generator)
        return with_noisy_gate(target, weighted, noisy_gate(logit, self.gate_temperature, noise))


class _Stack(nn.Module):
    def __init__(self, count: int, width: int, inner: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(_Block(width, inner, dropout, dtype) for _ in range(count)))

    def forward(self, hidden: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        out: Tensor = self.blocks(hidden)
        return out


class _Block(nn.Module):
    def __init__(self, width: int, inner: int, dropout: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, dtype=dtype)
        self.w1 = nn.Linear(width, inner, bias=False, dtype=dtype)
        self.w2 = nn.Linear(inner, width, bias=False, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Float[Tensor, "batch seq width"]) -> Float[Tensor, "batch seq width"]:
        out: Tensor = hidden + self.dropout(self.w2(functional.gelu(self.w1(self.norm(hidden)))))
        return out


def flattened(columns: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq width"]:
    """Return one vector per column, the heads one after the other."""
    return columns.transpose(1, 2).flatten(2)


def in_heads(vectors: Float[Tensor, "batch seq width"], heads: int) -> Float[Tensor, "batch heads seq head_dim"]:
    """Return columns cut into heads again, as `flattened` joins them."""
    batch, seq, width = vectors.shape
    return vectors.view(batch, seq, heads, width // heads).transpose(1, 2)


def with_gate(
    target: Float[Tensor, "batch heads seq head_dim"],
    weighted: Weighted,
    logit: Float[Tensor, ""],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Return the target plus weight times projection if the gate's logit is above 0, else the very same numbers.

    Chosen rather than multiplied by 0, so that a closed gate also hides a projection that is not finite. The
    published code multiplies by a float32 gate and so returns float32 from a bfloat16 fuser, by accident; here the
    target's dtype stays.
    """
    weight, projected = weighted
    return torch.where(logit > 0, target + (weight * projected).to(target.dtype), target)


def with_noisy_gate(
    target: Float[Tensor, "batch heads seq head_dim"],
    weighted: Weighted,
    gate: Float[Tensor, "*gates"],
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Return the target plus gate times weight times projection, in the target's dtype."""
    weight, projected = weighted
    return target + (gate.to(weight.dtype) * weight * projected).to(target.dtype)


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Float[Tensor, "*shape"]:
    """Return float32 numbers from [0, 1): the generator's, drawn on its own device, or torch's global one's."""
    drawn_on = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=drawn_on, dtype=torch.float32).to(device)


def noisy_gate(
    logit: Float[Tensor, ""], temperature: Float[Tensor, ""], noise: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return training's gate, sigmoid((logit + G) / T) with G = -log(-log(u + 1e-20) + 1e-20), u uniform."""
    gumbel = -torch.log(-torch.log(noise + TINY) + TINY)
    return torch.sigmoid((logit + gumbel) / temperature)


def annealed(step: int, init_args: Mapping[str, Any]) -> float:
    """Return a step's temperature, which falls geometrically: T0 (T1 / T0) ^ min(step / steps, 1).

    Raises:
        UsageError: If the step is below 0.
    """
    if step < 0:
        raise UsageError(f"There is no step {step}.", "Steps count from 0.")
    first, last = init_args["initial_temperature"], init_args["final_temperature"]
    return float(first * (last / first) ** min(step / init_args["anneal_steps"], 1.0))


def arguments(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments, from what is defined at its start, if they make a fuser.

    Raises:
        UsageError: With the argument that does not, and what it may be.
    """
    init_args = {name: value for name, value in scope.items() if name not in ("self", "__class__")}
    limits = {"num_layers": LAYERS, "anneal_steps": (1, 1 << 40)}
    for name, value in init_args.items():
        least, most = limits.get(name, (1, MOST))
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and not least <= value <= most:
            raise UsageError(f"{name} is {value}, expected {least} to {most}.", f"Give {least} or more.")
    for name in ("initial_temperature", "final_temperature"):
        if not 0 < init_args[name] < float("inf"):
            raise UsageError(f"{name} is {init_args[name]}, expected more than 0.", "Give a temperature above 0.")
    if not 0 <= init_args["dropout"] < 1:
        raise UsageError(f"dropout is {init_args['dropout']}, expected 0 to below 1.", "0 leaves it out.")
    if not init_args["dtype"].is_floating_point:
        raise UsageError(f"dtype is {init_args['dtype']}, expected a floating-point one.", "Give torch.float32.")
    return init_args


def require_fitting(source: KV, target: KV, init_args: Mapping[str, Any]) -> None:
    """Refuse keys and values that are not of a fuser's heads, or not of the same columns.

    Raises:
        UsageError: With the shapes found and expected.
    """
    sizes = [(init_args[f"{side}_num_heads"], init_args[f"{side}_dim"]) for side in ("source", "target")]
    shapes = [tuple(each.shape) for each in (*source, *target)]
    expected = [size for size in sizes for _ in KINDS]
    right = all(len(shape) == 4 and (shape[1], shape[3]) == size for shape, size in zip(shapes, expected, strict=True))
    if not right or len({(shape[0], shape[2]) for shape in shapes}) > 1:
        found = ", ".join(str(list(shape)) for shape in shapes)
        (from_heads, from_dim), (to_heads, to_dim) = sizes
        raise UsageError(
            f"Source keys and values, target keys and values are {found}, expected twice "
            f"[batch, {from_heads}, seq, {from_dim}] and twice [batch, {to_heads}, seq, {to_dim}], "
            "batch and seq the same throughout.",
            "Give the layers of the two models this fuser was made for, and the same columns of both.",
        )
