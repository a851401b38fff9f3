"""A coordinator in memory and a site that it enrolled, for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from peer_world import FakeCoordinator, Site, Versions


@pytest.fixture
async def coordinator() -> FakeCoordinator:
    return FakeCoordinator()


@pytest.fixture
async def site(tmp_path: Path, coordinator: FakeCoordinator) -> Site:
    return Site(tmp_path / "site", coordinator)


@pytest.fixture
async def versions(tmp_path: Path, coordinator: FakeCoordinator) -> Versions:
    made = Versions(tmp_path)
    coordinator.blobs = made.blobs
    return made
