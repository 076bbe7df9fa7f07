"""Controls of fusers: named, told apart, and refused without a fuser's name."""

from __future__ import annotations

import pytest

from unspoken.errors import UsageError


def test_names_lead_to_controls() -> None:
    from unspoken.lab.arms import build_arm, needs_donor
    from unspoken.lab.fused_arms import FusedDeranged, FusedSelf, FusedZero, control_of

    assert isinstance(build_arm("fused-deranged:some"), FusedDeranged)
    assert isinstance(build_arm("fused-zero:some"), FusedZero)
    assert isinstance(build_arm("fused-self:some"), FusedSelf)
    assert needs_donor("fused-deranged:some")
    assert needs_donor("kv-deranged")
    assert not needs_donor("fused:some")
    assert control_of("fused:some:own=3") == "fused-deranged:some:own=3"
    assert control_of("kv") is None


@pytest.mark.parametrize("name", ["fused-deranged", "fused-zero:", "fused"])
def test_an_arm_without_a_fuser_is_refused(name: str) -> None:
    from unspoken.lab.arms import build_arm

    with pytest.raises(UsageError):
        build_arm(name)


def test_what_a_run_is_about() -> None:
    from unspoken.lab.metrics import subject_of

    assert subject_of(("none", "fused:a", "fused-deranged:a")) == "fused:a"
    assert subject_of(("none", "fused:a", "fused:b", "fused-deranged:b")) == "fused:b"
    assert subject_of(("none", "fused:a")) is None
    assert subject_of(("kv", "fused:a", "fused-deranged:a")) == "kv"
