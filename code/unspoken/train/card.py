"""What is said about a trained fuser: its card, and the curve of its loss."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unspoken.fusers.pair import Pair
from unspoken.train.config import Training

SMOOTHED_OVER = 50
TRANSLATES = (
    "It makes columns of {receiver} from those of {sender},\nso that the receiver answers about a text that only the "
    "sender has read."
)
PURPOSES = {
    "ridge": TRANSLATES,
    "bottleneck": TRANSLATES,
    "c2c": "Both models read a text, and it adds to the columns of {receiver}\nwhat those of {sender} hold.",
}
"""What a fuser of each kind does."""


def card(training: Training, pair: Pair, metrics: dict[str, Any], run: Path) -> str:
    """Return a fuser's README."""
    losses = ", ".join(f"{name} {value:.3f}" for name, value in metrics["last_losses"].items()) or "none: no steps"
    purpose = PURPOSES[training.kind].format(sender=f"**{pair.sender.name}**", receiver=f"**{pair.receiver.name}**")
    times = ", ".join(f"{what} {seconds / 60:.1f}" for what, seconds in metrics["seconds"].items())
    return f"""---
library_name: unspoken
license: apache-2.0
tags: [kv-cache, fuser, {training.kind}]
---
# {training.name}

A fuser of `unspoken`. {purpose}

| | |
|---|---|
| kind | {training.kind} |
| numbers kept | {metrics["parameters"]:,} ({metrics["trained_parameters"]:,} trained) |
| lessons, steps | {metrics["lessons"]:,}, {metrics["steps"]:,} |
| loss at the end | {losses} |
| minutes to train | {times} |
| run | `{run.parent.name}/{run.name}` |
| sender's weights | `{pair.sender.weights}` |
| receiver's weights | `{pair.receiver.weights}` |

Use it as a channel, `fused:{training.name}`; it refuses any other pair of models. How it was trained is in
`training.yaml`: `unspoken fuser train` with that file makes it again. What it can
and cannot do is measured, see docs/fusers.md of the project.
"""


def curve(noted: Sequence[dict[str, Any]]) -> bytes:
    """Return the losses of a training as a drawing in SVG, each part smoothed over some steps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for name in sorted({name for each in noted for name in each} - {"step", "seconds"}):
        points = [(each["step"], each[name]) for each in noted if name in each]
        runs = [points[at : at + SMOOTHED_OVER] for at in range(0, len(points), SMOOTHED_OVER)]
        means = [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]
        axes.plot(*zip(*means, strict=True), label=name)
    axes.set(xlabel="step", ylabel=f"loss in nats, mean of {SMOOTHED_OVER}")
    if axes.lines:
        axes.legend()
    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "unspoken"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
