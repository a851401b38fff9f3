"""The demo from beginning to end."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Mapping
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
from fedtrain.core.orders import parse_order_id
from fedtrain.core.spec import RunSpec
from fedtrain.core.terms import read_asked
from fedtrain.errors import ConfigError, NotFoundError, RefusedError
from fedtrain.methods.accounting import solve_noise
from fedtrain.wire.client import CoordinatorClient

FLOAT32_BYTES = 4

ACCOUNTS_S = 60.0

LEARNT_FROM = {"causal_lm": ("text", "byte"), "classifier": ("records", "record")}
"""Task -> (what its data are, in what a loss is counted)."""


def run_show(config: Path | None, wanted: Path | None, seed: int | None, *, quiet: bool) -> Outcome:
    """Train, compare, verify. Progress goes to standard output, or with `quiet` to standard error."""
    config = config or examples() / "configs" / "library-lm.yaml"
    spec = load_run(config).spec()
    if seed is not None:
        spec = replace(spec, seed=seed)
    _check_task(spec, config)
    site_files = _site_files(spec, config)
    folder, lock = claim_folder(wanted)
    try:
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
    """The comparison needs something that is learnt; say so before anything starts."""
    name = json.loads(spec.task)["name"]
    if name not in LEARNT_FROM:
        raise ConfigError(
            f"the demo compares models that learn, not {name}: use {' or '.join(LEARNT_FROM)}",
            file=str(config),
            key="task.name",
        )


def _site_files(spec: RunSpec, config: Path) -> list[Path]:
    """The sites that the run names, or those of the library example for a run that takes all."""
    peers = examples() / "peers"
    if not spec.sites:
        return sorted(peers.glob("*/peer.yaml"))
    known = {path.parent.name: path for path in peers.rglob("peer.yaml")}
    if unknown := [name for name in spec.sites if name not in known]:
        raise ConfigError(
            f"the demo has no site {unknown[0]!r}; it has {', '.join(sorted(known))}",
            file=str(config),
            key="sites.include",
        )
    return [known[name] for name in spec.sites]


async def _show(consortium: Consortium, config: Path, spec: RunSpec, quiet: bool) -> Outcome:
    began = time.monotonic()
    async with consortium.client() as client:
        await _train(consortium, client, spec, quiet)
        view = await _accounted(client, spec)
        stopped = _stopped((await client.rounds(spec.run))["rounds"])
        model = consortium.folder / "model.safetensors"
        export = await client.export(spec.run)
        await save(export, model)
    consortium.stop()
    problems = _verify(consortium)
    found = await _compare(consortium, config, spec, model)
    losses = {way: document["loss"] for way, document in found.items()}
    return Outcome(
        run=spec.run,
        seed=spec.seed,
        rounds=view["version"],
        federated=losses.pop("federated"),
        central=losses.pop("central"),
        local=losses,
        accuracy={way: document["accuracy"] for way, document in found.items() if document["accuracy"]},
        learnt_from=LEARNT_FROM[json.loads(spec.task)["name"]],
        privacy=view["privacy"],
        stopped=stopped,
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


async def _accounted(client: CoordinatorClient, spec: RunSpec) -> Mapping[str, Any]:
    """The run's view, once all sites have signed for what their last part has cost, or `ACCOUNTS_S` later.

    They reckon beside the training, and on a busy machine the tight accountant comes behind it.
    """
    asked = read_asked(spec.task)
    end = time.monotonic() + ACCOUNTS_S
    while True:
        view: Mapping[str, Any] = await client.run(spec.run)
        last = view["last"]
        gave = {site for site, seat in last["seats"].items() if not seat.get("reason")}
        told = {
            line["site"]
            for line in view["privacy"]["spent"]
            if parse_order_id(line["order"])[1:3] == (last["index"], last["attempt"])
        }
        if not asked.privacy.units or gave <= told or time.monotonic() > end:
            return view
        await asyncio.sleep(0.5)


def _stopped(rounds: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Site -> why it has given nothing since a round, for those that have not come back."""
    found: dict[str, str] = {}
    for closed in rounds:
        for site, seat in closed["seats"].items():
            found.pop(site, None)
            if seat.get("reason"):
                found[site] = f"round {closed['index']}: {seat['reason']}"
    return found


async def _compare(
    consortium: Consortium, config: Path, spec: RunSpec, model: Path
) -> dict[str, dict[str, Any]]:
    """Each site alone with its own number of steps; central with the same tokens as all together.

    Where the run promises privacy, they keep the same. Then all data in one place take as many steps as one
    site, because each of them draws from the data of all.
    """
    files = {site: consortium.site_file(site) for site in sorted(consortium.site_files)}
    steps, private = spec.rounds * spec.steps, _private(spec)
    everything = tuple(files.values())
    baselines = [
        Baseline("federated", (), 0, model=model),
        Baseline("central", everything, steps if private else steps * len(files), private),
        *(Baseline(site, (path,), steps, private) for site, path in files.items()),
    ]
    return await measure(baselines, config, list(everything), spec.seed, consortium.folder / "baselines")


def _private(spec: RunSpec) -> dict[str, Any] | None:
    """The plan of the run's private steps, the same for every number of records; None for plain steps."""
    record = read_asked(spec.task).record
    if record is None:
        return None
    if record.sampling_rate is None:
        raise ConfigError(
            "the demo compares runs with one sampling rate for all data: give one",
            key="privacy.record.sampling_rate",
        )
    noise = solve_noise(
        record.epsilon, record.delta, record.sampling_rate, record.steps_total, record.accountant
    )
    return {
        "clip": record.clip,
        "noise_multiplier": noise,
        "sampling_rate": record.sampling_rate,
        "unit": record.unit,
        "mode": record.mode,
    }


def _verify(consortium: Consortium) -> tuple[str, ...]:
    """The coordinator's journal against its signatures and the heads that the sites kept."""
    from fedtrain.cli.audit import examine

    return tuple(map(str, examine(consortium.journal, [consortium.folder / "sites"], None).problems))


def _traffic(view: Mapping[str, Any], sites: int) -> Traffic:
    """float32: every site sends an update and fetches a version per round, plus the first model."""
    model_bytes = view["num_elements"] * FLOAT32_BYTES
    float32 = model_bytes * (2 * sites * view["version"] + 1 + sites)
    return Traffic(view["bytes_up"], view["bytes_down"], float32)
