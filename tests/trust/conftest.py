"""One consortium for all tests of this room, and a moment that counts as now."""

from __future__ import annotations

import time

import pytest

from fedtrain.trust.authority import Authority, create_authority


@pytest.fixture(scope="session")
def now_ms() -> int:
    """The real time, once: TLS libraries hold certificates against their own clock."""
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="session")
def authority(now_ms: int) -> Authority:
    return Authority(*create_authority("vineyard", now_ms))


@pytest.fixture(scope="session")
def stranger(now_ms: int) -> Authority:
    """Another authority that claims the same name."""
    return Authority(*create_authority("vineyard", now_ms))
