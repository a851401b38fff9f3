"""A coordinator in the test's own process, with sites that are scripts over the real client."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from system_world import free_port

from fedtrain import coordinator
from fedtrain.coordinator.process import open_coordinator
from fedtrain.trust.folders import load_member


def _load_scripts() -> Any:
    """The coordinator's test bench, which is no package."""
    path = Path(__file__).parents[1] / "coordinator" / "coordinator_world.py"
    spec = importlib.util.spec_from_file_location("coordinator_scripts", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scripts = _load_scripts()


@contextlib.asynccontextmanager
async def served(folder: Path, *sites: str) -> AsyncIterator[Any]:
    """A coordinator below `folder` in this process, with scripted sites attached."""
    home = folder / "coordinator"
    coordinator.init(home, "test", f"127.0.0.1:{free_port()}")
    operator = scripts.client_of(load_member(home / "operator"))
    made = scripts.Consortium(folder, await open_coordinator(home), operator)
    try:
        for name in sites:
            await (await made.join(name)).attend()
        yield made
    finally:
        for site in made.sites:
            await site.close()
        await operator.close()
        await made.serving.close()
