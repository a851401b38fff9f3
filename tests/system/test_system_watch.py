"""Whoever watches a run is told its end."""

from __future__ import annotations

from pathlib import Path

from system_scripts import scripts, served

from fedtrain.coordinator.operations import Operations
from fedtrain.wire.values import Caller

OPERATOR = Caller(name="operator", role="operator", fingerprint="", key_digest="", not_after_ms=0)


async def test_watch_tells_an_end_that_comes_while_a_view_is_on_its_way(tmp_path: Path) -> None:
    """A run that ends while its last view but one is being sent is still seen to end."""
    async with served(tmp_path, "east", "north") as consortium:
        operations = Operations(consortium.serving.hub, consortium.serving.sessions)
        await operations.start(OPERATOR, scripts.spec_of())
        views = operations.watch(OPERATOR, "tiny")
        assert (await anext(views))["phase"] != "stopped"
        await operations.stop(OPERATOR, "tiny")
        assert [view["phase"] async for view in views] == ["stopped"]
