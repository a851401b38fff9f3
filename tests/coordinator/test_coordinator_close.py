"""A coordinator that closes leaves nothing behind that would still write."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from coordinator_world import Consortium, client_of, free_port, spec_of

from fedtrain import coordinator
from fedtrain.coordinator.process import open_coordinator
from fedtrain.trust.folders import load_member


async def test_timers_end_with_the_coordinator(tmp_path: Path) -> None:
    """A timer of a run does not fire into the closed journal, which showed as a traceback at the end."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    home = tmp_path / "coordinator"
    coordinator.init(home, "test", f"127.0.0.1:{free_port()}")
    serving = await open_coordinator(home)
    async with client_of(load_member(home / "operator")) as operator:
        made = Consortium(tmp_path, serving, operator)
        for name in ("east", "west"):
            await (await made.join(name)).close()
        # It waits for sites that are not there, until their patience is spent.
        await operator.start(spec_of(patience_ms=1_000, heartbeat_ms=500))
    await serving.close()
    await asyncio.sleep(1.5)
    assert not heard
