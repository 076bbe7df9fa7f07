"""`unspoken plan`: what of a model fits this machine, and which command to run."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from unspoken.cli.common import as_json, human_bytes, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from unspoken.plan.fit import Fit
    from unspoken.plan.profiles import Overview, Plan
    from unspoken.plan.shape import Weights


@click.command()
@click.argument("model")
@click.option("--vram", default="6GB", show_default=True, help="Memory of the small machine's GPU; 0 for none.")
@click.option("--ram", default="19.4GB", show_default=True, help="RAM of the small machine.")
@click.option(
    "--context", type=int, help="Columns each agent may have.  [default: 4096, or what the model was made for]"
)
@click.option("--agents", default=3, show_default=True, type=int, help="Agents that take part.")
@as_json
def plan(model: str, vram: str, ram: str, context: int | None, agents: int, as_json: bool) -> None:
    """Tell for MODEL and a machine what fits: weights, caches, agents, and the command to run.

    MODEL is a .gguf file, a folder with config.json, or a name of the catalogue. Nothing is fetched or loaded.
    Three profiles are planned: minimum (the machine of --vram and --ram), comfortable (16 GB of GPU memory) and
    optimal (48 GB).
    """
    from unspoken.plan.fit import Budget
    from unspoken.plan.profiles import overview
    from unspoken.plan.sizes import parse_size
    from unspoken.plan.source import find

    budget = Budget(parse_size(vram, "--vram"), parse_size(ram, "--ram"))
    found = overview(find(model), agents, context, budget)
    if as_json:
        print_json(_as_data(found))
        return
    from rich.console import Console

    console = Console(width=120, highlight=False)
    console.print(_heading(found), markup=False)
    console.print(_caches(found))
    console.print(_profiles(found))
    for each in found.plans:
        console.print(_verdict(found, each), markup=False, soft_wrap=True)


def _as_data(found: Overview) -> dict[str, Any]:
    """Return an overview as it is printed with --json."""
    from unspoken.plan.fit import GPU_BYTES, PROCESS_BYTES

    shape = found.model.shape
    return {
        "model": asdict(shape) | {"parameters": shape.parameters, "source": found.model.source},
        "stored_bytes": found.model.stored_bytes,
        "context": found.context,
        "agents": found.agents,
        "cache": {
            kind: {"bytes_per_token": each.bytes_per_token, "bytes_per_agent": each.bytes_per_agent}
            for kind, each in found.plans[0].fit_by_kv_type.items()
        },
        "compute_buffer_bytes": found.compute_buffer_bytes,
        "process_bytes": PROCESS_BYTES,
        "gpu_bytes": GPU_BYTES,
        "profiles": [_profile_as_data(each) for each in found.plans],
    }


def _profile_as_data(each: Plan) -> dict[str, Any]:
    weights = each.weights
    return {
        "name": each.profile.name,
        "aim": each.profile.aim,
        **asdict(each.profile.budget),
        "weights": {
            "name": weights.name,
            "bytes": weights.total_bytes,
            "embedding_bytes": weights.embedding_bytes,
            "output_bytes": weights.output_bytes,
            "layers_bytes": sum(weights.layer_bytes),
            "estimated": weights.estimated,
        },
        "fits": each.fits,
        "kv_type": each.kv_type,
        "command": each.command,
        "advice": list(each.advice),
        "kv_types": {kind: asdict(fit) for kind, fit in each.fit_by_kv_type.items()},
    }


def _heading(found: Overview) -> str:
    shape = found.model.shape
    stored = f", {human_bytes(found.model.stored_bytes)} stored" if found.model.stored_bytes else ""
    weights = found.plans[0].weights
    exact = "" if weights.estimated else f", {human_bytes(weights.total_bytes)}"
    count = shape.parameters
    millions = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.0f} million"
    return (
        f"{shape.name}: {millions} weights{exact}{stored}; {shape.layers} layers, "
        f"{shape.kv_heads} KV heads of {shape.head_dim}, made for {shape.context} columns (from {found.model.source})"
    )


def _caches(found: Overview) -> Table:
    from rich.table import Table

    from unspoken.plan.profiles import RECOMMENDED

    shown = Table(title=f"Caches, with a context of {found.context} columns", title_justify="left")
    for name in ("cache", "per token", "per agent", f"{found.agents} agents", "compute buffer"):
        shown.add_column(name, justify="left" if name == "cache" else "right")
    for kind, each in found.plans[0].fit_by_kv_type.items():
        if kind in RECOMMENDED:
            sizes = (each.bytes_per_token, each.bytes_per_agent, each.bytes_per_agent * found.agents)
            shown.add_row(kind, *map(human_bytes, sizes), human_bytes(found.compute_buffer_bytes))
    return shown


def _profiles(found: Overview) -> Table:
    from rich.table import Table

    from unspoken.plan.profiles import RECOMMENDED

    shown = Table(title="What fits (* recommended; all sizes are estimates)", title_justify="left", show_lines=True)
    left = ("machine", "weights", "cache")
    right = (
        "layers\non GPU",
        "layers\nin RAM",
        "GPU\nmemory",
        "RAM",
        "RAM if\nno GPU",
        "agents\nat once",
        "longest\ncontext",
    )
    for name in left + right:
        shown.add_column(name, justify="left" if name in left else "right")
    for plan in found.plans:
        budget, weights = plan.profile.budget, plan.weights
        machine = f"{plan.profile.name}\n{human_bytes(budget.vram_bytes)} GPU\n{human_bytes(budget.ram_bytes)} RAM"
        fits = [(kind, fit) for kind, fit in plan.fit_by_kv_type.items() if kind in RECOMMENDED]
        kinds = "\n".join(("* " if kind == plan.kv_type else "  ") + kind for kind, _ in fits)
        cells = zip(*(_fit_cells(fit) for _, fit in fits), strict=True)
        size = human_bytes(weights.total_bytes)
        shown.add_row(machine, f"{weights.name}\n{size}", kinds, *("\n".join(each) for each in cells))
    return shown


def _fit_cells(fit: Fit) -> tuple[str, ...]:
    alone = human_bytes(fit.resident_bytes_cpu)
    if not fit.fits:
        return ("-", "-", "-", "-", alone, "none", "-")
    layers = (str(fit.layers_on_gpu), str(fit.layers_in_ram))
    needs = (human_bytes(fit.vram_bytes), human_bytes(fit.ram_bytes), alone)
    return (*layers, *needs, str(fit.agents_at_once), str(fit.longest_context))


def _verdict(found: Overview, plan: Plan) -> str:
    name, weights = plan.profile.name, plan.weights
    if plan.kv_type is None:
        said = f"{weights.name} weights do not fit, whatever the cache. What would: {'; or '.join(plan.advice)}."
        return f"\n{name}: {said}"
    fit = plan.fit_by_kv_type[plan.kv_type]
    said = f"{_place(fit)}, {plan.kv_type} caches; {_turns(found, plan, fit)}."
    return f"\n{name}: {said}\n  {plan.command}{_origin(found, weights)}"


def _origin(found: Overview, weights: Weights) -> str:
    """Return a line on where the file of the weights comes from, if it is not on this machine."""
    if not weights.estimated:
        return ""
    if found.model.argument(weights) == "FILE":
        return f"\n  FILE: a GGUF of it as {weights.name}, yours to bring"
    return f"\n  The first time, this fetches its {weights.name} file, {human_bytes(weights.total_bytes)}"


def _place(fit: Fit) -> str:
    if fit.layers_in_ram and fit.layers_on_gpu:
        return f"{fit.layers_on_gpu} layers on the GPU and {fit.layers_in_ram} in RAM"
    return "all layers in RAM" if fit.layers_in_ram else "all layers on the GPU"


def _turns(found: Overview, plan: Plan, fit: Fit) -> str:
    if fit.mode == "sequential":
        return (
            f"sequential: one agent at a time, the caches of the other {found.agents - 1} wait in {fit.parked_in} "
            f"({human_bytes(fit.parked_bytes)})"
        )
    if plan.profile.aim == "batches" and fit.agents_at_once > found.agents:
        return f"parallel: batches of up to {fit.agents_at_once} agents beside one copy of the weights"
    return f"parallel: {found.agents} at once beside one copy of the weights ({fit.agents_at_once} would fit)"
