"""Sessions of three agents on the fake engine."""

from __future__ import annotations

from typing import Any

import pytest

from unspoken.engines.fake import FakeEngine
from unspoken.session import Agent, Session

from .talks import NAMES, Made


@pytest.fixture
def made(fake: FakeEngine) -> Made:
    """Make a session of lyra, vera and cc."""

    def make(**options: Any) -> Session:
        return Session(*(Agent(name, fake) for name in NAMES), **options)

    return make
