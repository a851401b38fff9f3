"""The demo from beginning to end."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedtrain.cli import output
from fedtrain.cli.demo.baselines import Baseline, measure
from fedtrain.cli.demo.consortium import Consortium, claim_folder, examples, running
from fedtrain.cli.demo.report import Outcome, Traffic, document
from fedtrain.cli.model import save
from fedtrain.cli.watch import display
from fedtrain.config import load_run
from fedtrain.core.spec import RunSpec
from fedtrain.errors import ConfigError, NotFoundError, RefusedError
from fedtrain.wire.client import CoordinatorClient

FLOAT32_BYTES = 4


def run_show(config: Path | None, wanted: Path | None, seed: int | None, *, quiet: bool) -> Outcome:
    """Train, compare, verify. Progress goes to standard output, or with `quiet` to standard error."""
    config = config or examples() / "configs" / "library-lm.yaml"
    spec = load_run(config).spec()
    if seed is not None:
        spec = replace(spec, seed=seed)
    _check_task(spec, config)
    folder, lock = claim_folder(wanted)
    try:
        site_files = sorted((examples() / "peers").glob("*/peer.yaml"))
        count = len(site_files)
        output.note(f"a consortium starts in {folder.absolute()}: one coordinator, {count} sites")
        with running(Consortium(folder, site_files)) as consortium:
            consortium.start()
            outcome = asyncio.run(_show(consortium, config, spec, quiet))
        (folder / "report.json").write_text(json.dumps(document(outcome), indent=2))
        return outcome
    finally:
        os.close(lock)


def _check_task(spec: RunSpec, config: Path) -> None:
    """The comparison needs a model of text; say so before anything starts."""
    name = json.loads(spec.task)["name"]
    if name != "causal_lm":
        raise ConfigError(
            f"the demo compares language models, not {name}: use causal_lm", file=str(config), key="task.name"
        )


async def _show(consortium: Consortium, config: Path, spec: RunSpec, quiet: bool) -> Outcome:
    began = time.monotonic()
    async with consortium.client() as client:
        view = await _train(consortium, client, spec, quiet)
        model = consortium.folder / "model.safetensors"
        export = await client.export(spec.run)
        await save(export, model)
    consortium.stop()
    problems = _verify(consortium)
    losses = await _compare(consortium, config, spec)
    return Outcome(
        run=spec.run,
        seed=spec.seed,
        rounds=view["version"],
        federated={site: found["loss"] for site, found in view["evaluations"].items()},
        central=losses.pop("central"),
        local=losses,
        traffic=_traffic(view, len(consortium.site_files)),
        seconds=round(time.monotonic() - began, 1),
        model=str(model),
        model_digest=export.head.model_digest,
        problems=problems,
    )


async def _train(
    consortium: Consortium, client: CoordinatorClient, spec: RunSpec, quiet: bool
) -> Mapping[str, Any]:
    """Start the run, or find it where an interrupted demo left it, and follow it to its end."""
    try:
        view: Mapping[str, Any] = await client.run(spec.run)
        if view["spec"]["seed"] != spec.seed:
            raise ConfigError(f"this folder holds a demo with seed {view['spec']['seed']}: use another --dir")
        output.note(f"run {spec.run} goes on at version {view['version']}")
    except NotFoundError:
        view = await client.start(spec)
    with display(to_stderr=quiet) as screen:
        async for view in client.watch(spec.run):
            screen.show(view)
            consortium.check()
            if view["phase"] in ("paused", "stopped"):
                raise RefusedError(f"run {spec.run} is {view['phase']}: {view['reason']}")
    return view


async def _compare(consortium: Consortium, config: Path, spec: RunSpec) -> dict[str, Mapping[str, float]]:
    """Each site alone with its own number of steps; central with the same tokens as all together."""
    files = {site: consortium.site_file(site) for site in sorted(consortium.site_files)}
    steps = spec.rounds * spec.steps
    baselines = [Baseline("central", tuple(files.values()), steps * len(files))]
    baselines += [Baseline(site, (path,), steps) for site, path in files.items()]
    found = await measure(baselines, config, list(files.values()), spec.seed, consortium.folder / "baselines")
    return dict(found)


def _verify(consortium: Consortium) -> tuple[str, ...]:
    """The coordinator's journal against its signatures and the heads that the sites kept."""
    from fedtrain.cli.audit import examine

    return tuple(map(str, examine(consortium.journal, [consortium.folder / "sites"], None).problems))


def _traffic(view: Mapping[str, Any], sites: int) -> Traffic:
    """float32: every site sends an update and fetches a version per round, plus the first model."""
    model_bytes = view["num_elements"] * FLOAT32_BYTES
    float32 = model_bytes * (2 * sites * view["version"] + 1 + sites)
    return Traffic(view["bytes_up"], view["bytes_down"], float32)
