"""Send whole layers of columns and leave others out (KVComm, arXiv 2510.03346).

The published code makes one mask for all layers. In layers that were left out it lets the receiver's prompt see later
tokens of itself, as many as there are columns elsewhere (transformers issue 35168, "one mask for all layers"; shown
by `tests/channels/test_layers.py`). Here every layer has its own mask; `layers:published`
reproduces the fault, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from unspoken.cache import KVCache
from unspoken.channels.calibration import EXAMPLES
from unspoken.channels.kv import WIRE, arrived, called, sent
from unspoken.channels.names import share
from unspoken.channels.protocol import Delivery, Party, Reading, Readings, Request, once_per_source, stopwatch
from unspoken.channels.text import content
from unspoken.engines.capabilities import attentive
from unspoken.engines.protocol import Onset
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.transforms.codecs import codec_named
from unspoken.transforms.place import place_behind
from unspoken.transforms.select import keep

# Width of the prior over layers, in layers (paper, section 3.3).
PRIOR_WIDTH = 10.0
Masking = Literal["causal", "published"]
_PROFILES: WeakKeyDictionary[object, Float[Tensor, " layers"]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Layers:
    """The content columns of some layers, all of them in these and none in the others.

    Which layers is a matter of the model, found once with `unspoken.channels.calibration`. The first layer is always
    among them.

    Args:
        amount: Share of the layers, the first included.
        variant: `causal`, or `published` for the mask of the published code.
        alpha: Weight of the measured attention against a prior for the middle layers, from 0 to 1.
        codec: How columns are coded on the wire.

    Raises:
        UsageError: If an option is none of these, or the share is too small for one layer.
    """

    amount: float | int | str | None = None
    variant: str = "causal"
    alpha: float | int | str = 1.0
    codec: str = WIRE
    name: ClassVar[str] = "layers"

    def __post_init__(self) -> None:
        codec_named(self.codec)
        share(self.name, self.amount, 0.7)
        if self.variant not in ("causal", "published"):
            raise UsageError(f"There is no mask '{self.variant}'.", "Choose causal or published.")
        if self._alpha() is None:
            raise UsageError(f"alpha is '{self.alpha}'.", "Give a number from 0 to 1.")

    def send(self, requests: Sequence[Request], receiver: Party) -> tuple[Delivery, ...]:
        """Hand each set of readings over once; the questions fork the result."""
        return once_per_source(requests, lambda sources: [self._delivery(each, receiver) for each in sources])

    def _delivery(self, readings: Readings, receiver: Party) -> Delivery:
        took = {"capture": sum(reading.seconds for reading in readings)}
        alpha = self._alpha()
        chosen = chosen_layers(receiver, share(self.name, self.amount, 0.7), 1.0 if alpha is None else alpha)
        segments, moved = sent(readings, receiver, codec_named(self.codec), took, partial(only_layers, chosen))
        past = receiver.prefix
        with stopwatch(took, "inject"):
            for segment in segments:
                past = place_behind(past, segment)
        columns = max(layer.columns for layer in past.layers) - receiver.prefix.columns
        variant = None if self.variant == "causal" else self.variant
        name = called(self.name, self.codec, amount=self.amount, variant=variant, alpha=_unless_one(self.alpha))
        onset = Onset(lookahead=columns if self.variant == "published" else 0)
        return arrived(name, past, columns, took, moved, onset=onset)

    def _alpha(self) -> float | None:
        try:
            alpha = float(self.alpha)
        except ValueError:
            return None
        return alpha if 0 <= alpha <= 1 else None


def only_layers(chosen: Sequence[int], _: Reading, segment: KVCache) -> KVCache:
    """Return content columns with those of other layers left out."""
    everything, nothing = torch.arange(segment.columns), torch.arange(0)
    return keep(
        segment,
        [everything if layer.index in chosen else nothing for layer in segment.layers],
        Step("select.layers", {"layers": list(chosen)}),
    )


def chosen_layers(receiver: Party, part: float, alpha: float) -> list[int]:
    """Return the layers that are sent: the first, and those with the highest scores.

    Args:
        receiver: On whose model it is measured.
        part: Share of the layers.
        alpha: Weight of the measured attention against the prior.

    Raises:
        UsageError: If the share is too small for one layer.
    """
    layers = receiver.engine.spec.layers
    many = int(part * layers + 1e-9)
    if many < 1:
        raise UsageError(f"A share of {part:g} of {layers} layers is none.", "Give a larger share.")
    scores = alpha * _stretched(profile(receiver)) + (1 - alpha) * _stretched(prior(layers))
    scores[0] = torch.inf
    return sorted(scores.topk(many).indices.tolist())


def prior(layers: int) -> Float[Tensor, " layers"]:
    """Return the paper's preference for the middle layers (section 3.3): a Gaussian around them."""
    index = torch.arange(layers, dtype=torch.float32)
    return torch.exp(-((index - (layers - 1) / 2) ** 2) / (2 * PRIOR_WIDTH**2))


def profile(receiver: Party) -> Float[Tensor, " layers"]:
    """Return how much questions attend to content in each layer (paper, section 3.3), measured once for a model.

    The mean over heads, question tokens and calibration texts of the attention that goes to content columns.
    """
    engine = receiver.engine
    if engine not in _PROFILES:
        shown = attentive(engine, "layers")
        sums = torch.zeros(engine.spec.layers)
        for example in EXAMPLES:
            cache = engine.prefill(content(receiver, example.text), receiver.prefix)
            question = content(receiver, f"\n\n{example.question}") + receiver.frame.after
            weights = shown.attention(question, cache, len(question.token_ids))
            sums += torch.stack([layer[..., receiver.prefix.columns :].sum(-1).mean() for layer in weights])
        _PROFILES[engine] = sums / len(EXAMPLES)
    return _PROFILES[engine]


def _stretched(scores: Float[Tensor, " layers"]) -> Float[Tensor, " layers"]:
    """Return scores from 0 to 1."""
    spread = scores.max() - scores.min()
    return (scores - scores.min()) / spread if spread > 0 else torch.zeros_like(scores)


def _unless_one(alpha: float | int | str) -> float | int | str | None:
    return None if float(alpha) == 1 else alpha
