"""Controls of hand-overs through a fuser: another text's columns, none at all, and the receiver as its own sender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unspoken.channels.fused import Fused
from unspoken.channels.names import build_channel
from unspoken.channels.protocol import Delivery, Party, Reading, Request, once_per_source, only
from unspoken.errors import UsageError
from unspoken.manifest import Step
from unspoken.session import Agent

NAME = "fused"
Donor = Callable[[Reading], Reading]


@dataclass(frozen=True)
class FusedDeranged:
    """Another item's columns through the same fuser: whatever it does by being there, without the right content."""

    fused: Fused

    def deliver(self, requests: Sequence[Request], receiver: Party, donor: Donor) -> tuple[Delivery, ...]:
        """Hand the donor's columns over, exactly as the channel hands over the right ones."""

        def swapped(reading: Reading) -> Delivery:
            return self.fused.deliver(donor(reading), receiver)

        return _each(requests, swapped, "fused-deranged")


@dataclass(frozen=True)
class FusedZero:
    """Zeros go into the fuser: what is left is what its constants do."""

    fused: Fused

    def deliver(self, requests: Sequence[Request], receiver: Party, donor: Donor) -> tuple[Delivery, ...]:
        """Hand zeros over."""
        blank = Step("control.zero")
        return _each(requests, lambda reading: self.fused.deliver(reading, receiver, blank), "fused-zero")


@dataclass(frozen=True)
class FusedSelf:
    """The receiver's own model reads, and a fuser for itself hands over: what is left without a second model."""

    fused: Fused

    def deliver(self, requests: Sequence[Request], receiver: Party, donor: Donor) -> tuple[Delivery, ...]:
        """Let the receiver's model read the source under the sender's name, and fuse that."""

        def itself(reading: Reading) -> Delivery:
            reader = Agent(reading.reader.name, receiver.engine)
            return self.fused.deliver(reader.read(reading.source), receiver)

        return _each(requests, itself, "fused-self")


CONTROLS: dict[str, Callable[[Fused], FusedDeranged | FusedZero | FusedSelf]] = {
    "fused-deranged": FusedDeranged,
    "fused-zero": FusedZero,
    "fused-self": FusedSelf,
}


def is_control(name: str) -> bool:
    """Tell whether an arm's name is that of a control of a fuser: `fused-deranged:NAME`."""
    return name.partition(":")[0] in CONTROLS


def needs_donor(name: str) -> bool:
    """Tell whether an arm needs another source's columns."""
    return name.partition(":")[0] == "fused-deranged"


def control_of(arm: str) -> str | None:
    """Return the name of the control with another text's columns for a fused arm; None for any other arm."""
    kind, _, fuser = arm.partition(":")
    return f"fused-deranged:{fuser}" if kind == NAME else None


def build_control(name: str) -> FusedDeranged | FusedZero | FusedSelf:
    """Return the control of a name such as `fused-deranged:NAME`, with the channel's own options.

    Raises:
        UsageError: If no fuser is named, or the channel does not take the options.
    """
    kind, _, fuser = name.partition(":")
    channel = build_channel(f"{NAME}:{fuser}")
    if not isinstance(channel, Fused):
        raise UsageError(f"The arm '{name}' is no control of a fuser.", "Write fused-deranged:NAME.")
    return CONTROLS[kind](channel)


def _each(requests: Sequence[Request], deliver: Callable[[Reading], Delivery], name: str) -> tuple[Delivery, ...]:
    def named(reading: Reading) -> Delivery:
        made = deliver(reading)
        return replace(made, channel=f"{name}{made.channel.removeprefix(NAME)}")

    return once_per_source(requests, lambda sources: [named(only(each, name)) for each in sources])
