"""What the federated model is held against: each site alone, and all data in one place.

Each is a process of its own, one thread each, two at a time. Their results are kept in
`DIR/baselines`, so that a demo which goes on does not measure them again.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtrain.cli import output
from fedtrain.errors import FedtrainError

AT_ONCE = max(1, min(2, os.cpu_count() or 1))


@dataclass(frozen=True)
class Baseline:
    """One model to train: on which sites' data, for how many steps.

    Attributes:
        private: the noise of every step, as a record plan; None for none.
        model: measured instead, where there are no steps.
    """

    name: str
    train: tuple[Path, ...]
    steps: int
    private: Mapping[str, Any] | None = None
    model: Path | None = None


async def measure(
    baselines: list[Baseline], config: Path, evaluate: list[Path], seed: int, folder: Path
) -> dict[str, dict[str, Any]]:
    """Baseline -> its document; `loss` and `accuracy` in it: site -> that on the site's held-out data."""
    folder.mkdir(exist_ok=True)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(baseline: Baseline) -> dict[str, Any]:
        kept = folder / f"{baseline.name}.json"
        async with gate:
            if not kept.exists():
                if baseline.steps:
                    output.note(f"training for comparison: {baseline.name}, {baseline.steps} steps")
                kept.write_text(json.dumps(await _train(baseline, config, evaluate, seed)))
        document: dict[str, Any] = json.loads(kept.read_text())
        return document

    results = await asyncio.gather(*(one(baseline) for baseline in baselines))
    return {baseline.name: document for baseline, document in zip(baselines, results, strict=True)}


async def _train(baseline: Baseline, config: Path, evaluate: list[Path], seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedtrain.trainer.baseline", "--run", str(config)]
    if baseline.train:
        command += ["--train", *map(str, baseline.train)]
    if baseline.private is not None:
        command += ["--private", json.dumps(baseline.private)]
    if baseline.model is not None:
        command += ["--model", str(baseline.model)]
    command += ["--evaluate", *map(str, evaluate)]
    command += ["--steps", str(baseline.steps), "--name", baseline.name, "--seed", str(seed)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise FedtrainError(f"the baseline {baseline.name} failed: {err.decode(errors='replace').strip()}")
    document: dict[str, Any] = json.loads(out)
    return document
