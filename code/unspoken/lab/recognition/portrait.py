"""What makes an agent recognisable: a picture of layers by heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.identity.features import PARTS
from unspoken.identity.profile import Profile
from unspoken.lab.drawing import drawing, style, svg

BLOCKS = " ▁▂▃▄▅▆▇█"


def strength(profile: Profile) -> Float[Tensor, "layers parts kv_heads"]:
    """Return how far an agent is from the cohort, in units of how much that varies from text to text; 0 at layer 0.

    Raises:
        UsageError: If the agent was enrolled with one cache: nothing varied.
    """
    if profile.info.caches < 2:
        raise UsageError(
            f"{profile.name} was enrolled with one cache, and nothing tells what varies from text to text.",
            "Enrol with several caches.",
        )
    apart, spread = profile.deviation.norm(dim=-1), profile.spread.norm(dim=-1)
    return torch.where(spread > 0, apart / spread.clamp_min(torch.finfo(torch.float32).tiny), torch.zeros(()))


def portrait(profile: Profile) -> str:
    """Return the picture as SVG: heads across, layers down, keys and values side by side."""
    found = strength(profile)
    layers, heads = found.shape[0], found.shape[2]
    with style():
        figure, _ = drawing(620, max(260, 120 + 14 * layers), layout="constrained")
        figure.clear()
        both = figure.subplots(1, len(PARTS), sharey=True)
        for axes, part, at in zip(both, PARTS, range(len(PARTS)), strict=True):
            picture = axes.imshow(
                found[:, at].numpy(), cmap="cividis", aspect="auto", vmin=0, vmax=float(found.max()), rasterized=False
            )
            axes.set_title(part, fontsize=10)
            axes.set_xticks(range(heads))
            axes.set_xlabel("head")
        both[0].set_ylabel("layer")
        figure.colorbar(picture, ax=both, label="difference from others / its spread over texts", shrink=0.8)
        figure.suptitle(f"What makes {profile.name} recognisable", x=0.01, ha="left", fontweight="bold")
        return svg(figure, "portrait")


def lines(profile: Profile) -> Sequence[str]:
    """Return the picture as text, a line for each layer."""
    found = strength(profile)
    top = max(float(found.max()), torch.finfo(torch.float32).tiny)
    heads = found.shape[2]
    shown = [f"layer  {'keys':<{heads}}  values"]
    for layer, row in enumerate(found):
        cells = ["".join(BLOCKS[round(float(head) / top * (len(BLOCKS) - 1))] for head in part) for part in row]
        shown.append(f"{layer:>5}  {cells[0]:<4}  {cells[1]}")
    return [*shown, f"{BLOCKS[-1]} = {top:.2g}: the difference from others is that many times its spread over texts"]
