"""Three machines, and what to do on each: which weights, which cache, one agent after the other or all at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unspoken.errors import ContextOverflow, UsageError
from unspoken.plan.fit import Budget, Fit, compute_buffer_bytes, fit, kv_types, longest_context
from unspoken.plan.shape import BITS_PER_WEIGHT, Shape, Weights, quantised
from unspoken.plan.source import Model

# The most precise first. q4_0 is noticeably lossy, so it is for where nothing else fits.
RECOMMENDED = ("f16", "q8_0", "q4_0")
DEFAULT_CONTEXT = 4096
# A way out that leaves room for less is none.
LEAST_CONTEXT = 256


@dataclass(frozen=True)
class Profile:
    """A kind of machine.

    Attributes:
        name: For display.
        budget: Its memory.
        aim: What it is for: agents one after the other, all at once, or many at once.
    """

    name: str
    budget: Budget
    aim: Literal["sequential", "parallel", "batches"]


MINIMUM = Profile("minimum", Budget(6_000_000_000, 19_400_000_000), "sequential")
COMFORTABLE = Profile("comfortable", Budget(16_000_000_000, 32_000_000_000), "parallel")
OPTIMAL = Profile("optimal", Budget(48_000_000_000, 64_000_000_000), "batches")
PROFILES = (MINIMUM, COMFORTABLE, OPTIMAL)


@dataclass(frozen=True)
class Plan:
    """What to do with a model on a kind of machine.

    Attributes:
        profile: The machine.
        weights: The weights chosen for it.
        fits: Whether anything fits.
        kv_type: The element type recommended for caches; nothing where nothing fits.
        command: What to run; nothing where nothing fits.
        advice: What would fit, where nothing does.
        fit_by_kv_type: How each element type of the cache would fit.
    """

    profile: Profile
    weights: Weights
    fits: bool
    kv_type: str | None
    command: str | None
    advice: tuple[str, ...]
    fit_by_kv_type: dict[str, Fit]


@dataclass(frozen=True)
class Overview:
    """A model's plans for the three profiles."""

    model: Model
    context: int
    agents: int
    compute_buffer_bytes: int
    plans: tuple[Plan, ...]


def overview(model: Model, agents: int, context: int | None = None, budget: Budget | None = None) -> Overview:
    """Plan a model for the three profiles.

    Args:
        model: The model.
        agents: Agents that take part, each with a cache of its own.
        context: Columns each of them may have; by default 4096, or what the model was made for if that is less.
        budget: The memory of the smallest machine, instead of the profile's.

    Raises:
        UsageError: If there is no agent or no column.
        ContextOverflow: If the model was made for less.
    """
    if agents < 1:
        raise UsageError(f"A plan for {agents} agents is none.", "Give at least --agents 1.")
    columns = min(DEFAULT_CONTEXT, model.shape.context) if context is None else context
    if columns < 1:
        raise UsageError(f"A context of {columns} columns holds nothing.", "Give at least --context 1.")
    if columns > model.shape.context:
        raise ContextOverflow(
            f"A context of {columns} columns is more than '{model.shape.name}' was made for: {model.shape.context}.",
            "Give a shorter --context.",
        )
    smallest = MINIMUM if budget is None else replace(MINIMUM, budget=budget)
    plans = tuple(plan(model, profile, columns, agents) for profile in (smallest, COMFORTABLE, OPTIMAL))
    return Overview(model, columns, agents, compute_buffer_bytes(model.shape, columns), plans)


def plan(model: Model, profile: Profile, context: int, agents: int) -> Plan:
    """Choose weights and cache for a machine.

    Of several weights the most precise are taken that lie on the GPU as a whole, with the caches of all agents
    where the profile is for that; else those that do so with one agent's; else the smallest.
    """
    weights = model.choices[-1]
    for enough in (agents if profile.aim != "sequential" else 1, 1):
        whole = [each for each in model.choices if _whole(model.shape, each, profile, context, agents) >= enough]
        if whole:
            weights = whole[0]
            break
    fits = _fits(model.shape, weights, profile.budget, context, agents)
    chosen = recommended(fits, profile, agents)
    return Plan(
        profile=profile,
        weights=weights,
        fits=chosen is not None,
        kv_type=chosen,
        command=None if chosen is None else command(model, weights, fits[chosen], context, agents),
        advice=_advice(model.shape, weights, profile.budget, context, agents) if chosen is None else (),
        fit_by_kv_type=fits,
    )


def recommended(fits: dict[str, Fit], profile: Profile, agents: int) -> str | None:
    """Return the element type to keep caches in: the most precise one that costs neither layers nor agents.

    Every layer off the GPU slows down each token, which costs more than the rounding of q8_0 does; q4_0 is
    taken only where the others do not fit at all.
    """
    able = [kind for kind in RECOMMENDED if kind in fits and fits[kind].fits]
    careful = [kind for kind in able if kind != "q4_0"] or able

    def worth(kind: str) -> tuple[int, int, int]:
        at_once = 0 if profile.aim == "sequential" else min(fits[kind].agents_at_once, agents)
        return fits[kind].layers_on_gpu, at_once, -RECOMMENDED.index(kind)

    return max(careful, key=worth, default=None)


def command(model: Model, weights: Weights, chosen: Fit, context: int, agents: int) -> str:
    """Return the command that runs a plan, with room for everything that is resident at once."""
    columns = context * (agents if chosen.mode == "parallel" else 1)
    return (
        f"unspoken prove --engine llamacpp --model {model.argument(weights)} --kv-type {chosen.kv_type} "
        f"--gpu-layers {chosen.gpu_layers} --context {min(columns, model.shape.context)}"
    )


def _fits(shape: Shape, weights: Weights, budget: Budget, context: int, agents: int) -> dict[str, Fit]:
    return {kind: fit(shape, weights, budget, kind, context, agents) for kind in kv_types(shape)}


def _whole(shape: Shape, weights: Weights, profile: Profile, context: int, agents: int) -> int:
    """Return how many agents fit at once with all layers on the GPU, with the cache that would be recommended."""
    fits = _fits(shape, weights, profile.budget, context, agents)
    kind = recommended(fits, profile, agents)
    return 0 if kind is None or fits[kind].layers_in_ram else fits[kind].agents_at_once


def _advice(shape: Shape, weights: Weights, budget: Budget, context: int, agents: int) -> tuple[str, ...]:
    smallest = next(kind for kind in reversed(RECOMMENDED) if kind in kv_types(shape))
    found = []
    columns = longest_context(shape, weights, budget, smallest)
    if columns >= LEAST_CONTEXT:
        found.append(f"a context of {columns} columns with {smallest} caches (--context {columns})")
    for kind in BITS_PER_WEIGHT:
        smaller = quantised(shape, kind)
        if smaller.total_bytes < weights.total_bytes and any(
            each.fits for each in _fits(shape, smaller, budget, context, agents).values()
        ):
            found.append(f"{kind} weights, about {smaller.total_bytes / 1e9:.1f} GB")
            break
    needed = fit(shape, weights, budget, smallest, context, agents).resident_bytes_cpu
    found.append(f"{needed / 1e9:.1f} GB of RAM, without any GPU")
    return tuple(found)
