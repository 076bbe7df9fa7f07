"""The bottleneck does what its formula says, begins at the regression, and learns with its own weights alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import pytest
import torch
from torch import Tensor

from unspoken.errors import UsageError
from unspoken.fusers.bottleneck import Bottleneck
from unspoken.fusers.lowrank import LowRank, fit_low_rank
from unspoken.fusers.normal import NormalEquations
from unspoken.fusers.pair import Pair, Side
from unspoken.fusers.protocol import Enricher, Translator

TINY = Pair(Side("reader", "w1", "a1", "t1", 1, 1, 1), Side("answerer", "w2", "a2", "t2", 1, 1, 1))
Make = Callable[..., Bottleneck]


def gelu(value: float) -> float:
    """x times the share of a standard normal below x (Hendrycks and Gimpel, arXiv 1606.08415)."""
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def tiny(**tensors: object) -> Bottleneck:
    """A bottleneck of two numbers in, two out, rank 1, two hidden ones and one block, with numbers put in."""
    fuser = Bottleneck(msgspec.to_builtins(TINY), rank=1, width=2, blocks=1)
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    fuser.load_state_dict(fuser.state_dict() | {name.replace("__", "."): value for name, value in state.items()})
    return fuser


def linear(rank: int = 2, seed: int = 0) -> tuple[LowRank, Tensor, Tensor]:
    """A regression between two small models, and the columns it was fitted to."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 8, generator=generator) * 3 + 10
    y = x @ torch.randn(8, 6, generator=generator) + torch.randn(60, 6, generator=generator) - 20
    seen = NormalEquations(8, 6)
    seen.add(x, y)
    return fit_low_rank(seen, rank), x, y


SMALL = Pair(Side("reader", "w1", "a1", "t1", 2, 1, 2), Side("answerer", "w2", "a2", "t2", 1, 1, 3))


def small(rank: int = 2, width: int = 4, blocks: int = 1) -> Bottleneck:
    """A bottleneck of the models `linear` is for."""
    return Bottleneck(msgspec.to_builtins(SMALL), rank, width, blocks)


def test_one_column_worked_out_by_hand() -> None:
    fuser = tiny(
        sender_mean=[1.0, -2.0], sender_scale=[2.0, 0.5], receiver_mean=[10.0, 20.0], receiver_scale=[3.0, 0.1],
        down=[[0.5, -1.0]], up=[[2.0], [-4.0]],
        enter__weight=[[1.0, 0.0], [0.5, 0.5]], enter__bias=[0.0, -1.0],
        blocks__0__weight=[[0.0, 1.0], [2.0, 0.0]], blocks__0__bias=[0.5, 0.0],
        leave__weight=[[1.0, 1.0], [0.0, -2.0]], leave__bias=[0.25, 0.0],
    )  # fmt: skip
    # x = ([3, -1] - [1, -2]) / [2, 0.5] = [1, 2]; D x = 0.5 - 2 = -1.5.
    first = [gelu(1.0), gelu(0.5)]
    root = math.sqrt((first[0] ** 2 + first[1] ** 2) / 2 + torch.finfo(torch.float32).eps)
    rms = [first[0] / root, first[1] / root]
    hidden = [first[0] + gelu(rms[1] + 0.5), first[1] + gelu(2 * rms[0])]
    y = [2 * -1.5 + hidden[0] + hidden[1] + 0.25, -4 * -1.5 - 2 * hidden[1]]
    rows = torch.tensor([[3.0, -1.0]])
    assert fuser.encode(rows)[0].tolist() == pytest.approx([-1.5, *hidden], rel=1e-6)
    assert fuser(rows)[0].tolist() == pytest.approx([3 * y[0] + 10, 0.1 * y[1] + 20], rel=1e-6)


def test_without_a_network_it_is_the_linear_map() -> None:
    regression, x, _ = linear()
    fuser = small(width=0)
    fuser.start_from(regression)
    assert list(fuser.parameters()) == []
    assert fuser.encode(x).shape == (60, 2)
    inner = ((x - regression.sender_mean) / regression.sender_scale) @ regression.down.T
    made = inner @ regression.up.T * regression.receiver_scale + regression.receiver_mean
    assert torch.allclose(fuser(x), made, atol=1e-4)
    assert float((fuser(x) - made).abs().max()) < 1e-4 < float((fuser(x) - fuser.receiver_mean).abs().max())


def test_it_begins_at_the_regression_exactly() -> None:
    regression, x, y = linear()
    plain, fuser = small(width=0), small(width=4, blocks=2)
    plain.start_from(regression)
    fuser.start_from(regression)
    assert torch.equal(fuser(x), plain(x))
    # And that is better than the mean.
    assert float(((fuser(x).detach() - y).square().mean(0) / y.var(0)).mean()) < 0.7


def test_a_regression_that_does_not_fit_is_refused() -> None:
    regression, _, _ = linear(rank=1)
    with pytest.raises(UsageError, match=r"The regression's 'down' is \[1, 8\], the fuser's \[2, 8\]"):
        small(rank=2).start_from(regression)
    with pytest.raises(UsageError, match="'sender_mean'"):
        tiny().start_from(regression)


def test_gradients_reach_its_own_weights_and_nothing_else() -> None:
    regression, x, y = linear()
    fuser = small(blocks=2)
    fuser.start_from(regression)
    torch.nn.init.normal_(fuser.leave.weight)  # type: ignore[union-attr]
    (fuser(x) - y).square().mean().backward()
    trained = dict(fuser.named_parameters())
    assert set(trained) == {
        f"{part}.{what}" for part in ("enter", "blocks.0", "blocks.1", "leave") for what in ("weight", "bias")
    }
    assert all(each.grad is not None and bool(each.grad.any()) for each in trained.values())
    kept = dict(fuser.named_buffers())
    assert set(kept) == {"sender_mean", "sender_scale", "receiver_mean", "receiver_scale", "down", "up"}
    assert not any(each.requires_grad for each in kept.values())
    assert all(torch.equal(kept[name], getattr(regression, name)) for name in kept)


def test_what_arrives_is_what_was_sent(drawn_bottleneck: Make) -> None:
    fuser = drawn_bottleneck()
    rows = torch.randn(9, fuser.pair.sender.width)
    message = fuser.encode(rows)
    assert message.shape == (9, 80 + 96)
    assert torch.equal(fuser.decode(message), fuser(rows))
    # Columns do not look at each other.
    assert torch.allclose(fuser(rows[4:6]), fuser(rows)[4:6], atol=1e-5)


def test_it_is_a_translator(drawn_bottleneck: Make) -> None:
    fuser = drawn_bottleneck()
    assert isinstance(fuser, Translator)
    assert not isinstance(fuser, Enricher)
    assert (fuser.pair.sender.name, fuser.pair.receiver.name) == ("reader", "answerer")


@pytest.mark.parametrize(
    "sizes", [{"rank": 0}, {"width": -1}, {"blocks": -1}, {"blocks": 101}, {"rank": 3, "blocks": 10**9}]
)
def test_sizes_that_make_no_network_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"A fuser of rank .* cannot be"):
        small(**sizes)
