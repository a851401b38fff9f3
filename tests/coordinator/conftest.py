"""A served coordinator for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from coordinator_world import Consortium, client_of, free_port

from fedtrain import coordinator
from fedtrain.coordinator.process import open_coordinator
from fedtrain.trust.folders import load_member


@pytest.fixture
async def consortium(tmp_path: Path) -> AsyncIterator[Consortium]:
    """A coordinator on a random port of the loopback, with its first operator connected."""
    home = tmp_path / "coordinator"
    coordinator.init(home, "test", f"127.0.0.1:{free_port()}")
    serving = await open_coordinator(home)
    operator = client_of(load_member(home / "operator"))
    made = Consortium(tmp_path, serving, operator)
    try:
        yield made
    finally:
        for site in made.sites:
            await site.close()
        await operator.close()
        await made.serving.close()
