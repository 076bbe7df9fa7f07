"""Which of the sender's layers each of the receiver's layers listens to.

Source: Cache-to-Cache, arXiv 2510.03215, and the published code (thu-nics/C2C), whose default is `last_aligned`.
"""

from __future__ import annotations

from unspoken.errors import UsageError


def last_aligned(receiver_layers: int, sender_layers: int, k: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return the sources of each receiver layer, the two models' last layers beside each other.

    The anchor of layer t is S - T + t, held within 0 to S - 1: the first layers of a deeper receiver all listen to
    layer 0, and the first layers of a deeper sender are not heard. Further sources are the layers before the anchor,
    nearest first, then those behind it.

    Args:
        receiver_layers: T.
        sender_layers: S.
        k: Sources per receiver layer.

    Raises:
        UsageError: If there are no layers, or not as many as asked for.
    """
    _require_layers(receiver_layers, sender_layers, k)
    anchors = (min(max(sender_layers - receiver_layers + t, 0), sender_layers - 1) for t in range(receiver_layers))
    return tuple((*range(anchor, -1, -1), *range(anchor + 1, sender_layers))[:k] for anchor in anchors)


def depth_normalised(receiver_layers: int, sender_layers: int, k: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return the sources of each receiver layer, nearest by relative depth: |t / (T - 1) - s / (S - 1)|.

    Of two layers as near as each other the lower one comes first; a model's only layer is at depth 0.

    Args:
        receiver_layers: T.
        sender_layers: S.
        k: Sources per receiver layer, nearest first.

    Raises:
        UsageError: If there are no layers, or not as many as asked for.
    """
    _require_layers(receiver_layers, sender_layers, k)
    # Multiplied out, so that rounding decides no tie.
    receiver_span, sender_span = max(receiver_layers - 1, 1), max(sender_layers - 1, 1)

    def nearest(t: int) -> list[int]:
        return sorted(range(sender_layers), key=lambda s: abs(t * sender_span - s * receiver_span))

    return tuple(tuple(nearest(t)[:k]) for t in range(receiver_layers))


def _require_layers(receiver_layers: int, sender_layers: int, k: int) -> None:
    if min(receiver_layers, sender_layers) < 1 or not 1 <= k <= sender_layers:
        raise UsageError(
            f"{k} sources for each of {receiver_layers} receiver layers cannot come from {sender_layers} layers.",
            "Both models need a layer, and k goes from 1 to the number of the sender's layers.",
        )
