"""Identities that change under a run: short certificates, a new authority, a revocation, no round lost.

A coordinator and four sites as real processes train one run for five minutes, with certificates that live
60 s. After a quarter of the time the consortium's authority is rolled over to one of another name; after
half of it, one site is revoked. What must hold is checked and printed as one JSON line; the exit code is 1
if anything of it does not.

    python -m benchmarks.renewal            five minutes, certificates of 60 s
    python -m benchmarks.renewal --quick    a minute, certificates of 20 s, and no claim about seconds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.consortium import LOOK_EVERY_S, Consortium, emit
from fedtrain.cli.session import ask, load_identity, open_client
from fedtrain.storage.journal import Journal
from fedtrain.trust.certificates import parse_certificate
from fedtrain.trust.folders import load_member

RUN = "renewal"
SITES = 4
HEARTBEAT_S = 5.0
"""TRUST.md: a revocation cuts what is live within one."""

SETTLE_S = 60.0
"""For what should follow at once, on a busy machine."""

REASON = "its disk was stolen"

RUN_FILE = """\
run: {run}
task:
  name: synthetic
  model: {{parameters: 20000, tensors: 4}}
  training: {{seconds_per_step: {seconds}}}
sites: {{minimum: {least}}}
rounds: {{count: {rounds}, steps: 1, quorum: {least}, quorum_share: 0.5, deadline_s: 120, patience_s: 60,
  heartbeat_s: 1}}
codec: {{up: int8, down: int8}}
evaluate: {{every: 0}}
"""

STEP_S = 1.0
"""A round lasts longer than its one step, so a run of as many rounds as seconds lasts long enough."""


@dataclass(frozen=True)
class Plan:
    """How long the run trains, how long a certificate lives, in which time the revoked site must be gone."""

    run_s: float
    certificate_s: int
    gone_s: float


FULL = Plan(300.0, 60, HEARTBEAT_S)
QUICK = Plan(55.0, 20, SETTLE_S)


@dataclass
class Observed:
    """What was seen while the run went on, Unix milliseconds.

    Attributes:
        gone_ms: when the revoked site's agent had ended.
        exit_code: that agent's.
    """

    began_ms: int = 0
    ended_ms: int = 0
    gone_ms: int = 0
    exit_code: int = -1


def main() -> int:
    """Run, print one line, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute instead of five")
    parser.add_argument("--folder", type=Path, help="keep everything there, logs included")
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="fedtrain-renewal-") as scratch:
        return measure(options.folder or Path(scratch), plan)


def measure(folder: Path, plan: Plan) -> int:
    """One run under this plan."""
    folder.mkdir(parents=True, exist_ok=True)
    with Consortium(folder, SITES, options=("--certificates", f"{plan.certificate_s}s")) as consortium:
        before = roots(consortium)
        observed = asyncio.run(conduct(consortium, plan))
        report, claims = judge(consortium, plan, observed, before)
    failed = [claim for claim, holds in claims.items() if not holds]
    emit({**report, "failed": failed})
    if failed:
        print(consortium.last_words(), file=sys.stderr)
    return 1 if failed else 0


# -- what is done -----------------------------------------------------------------------------------


async def conduct(consortium: Consortium, plan: Plan) -> Observed:
    """Start the run, roll the authority over, revoke the last site, and wait for the end."""
    path = consortium.folder / "renewal.yaml"
    rounds = round_count(plan)
    path.write_text(RUN_FILE.format(run=RUN, seconds=STEP_S, least=SITES - 1, rounds=rounds))
    observed = Observed(began_ms=now_ms())
    await operate(consortium, "run", "start", str(path))
    await until(consortium, rounds // 4)
    await operate(consortium, "coordinator", "roll-over", str(consortium.home))
    await until(consortium, rounds // 2)
    await revoke(consortium, observed)
    await until(consortium, rounds)
    observed.ended_ms = now_ms()
    await settled(consortium)
    return observed


async def operate(consortium: Consortium, *words: str) -> str:
    """One command of the operator, beside everything else."""
    place = () if words[0] == "coordinator" else ("--dir", str(consortium.home))
    return await asyncio.to_thread(consortium.command, *words, *place)


async def until(consortium: Consortium, version: int) -> None:
    """Wait until this version is out."""
    while True:
        keys, proxy = load_identity(consortium.home)
        async with open_client(keys, proxy) as client:
            view = await client.run(RUN)
        if view["version"] >= version:
            return
        if view["phase"] in ("paused", "stopped"):
            raise RuntimeError(f"the run is {view['phase']}: {view['reason']}\n{consortium.last_words()}")
        consortium.check()
        await asyncio.sleep(LOOK_EVERY_S)


async def revoke(consortium: Consortium, observed: Observed) -> None:
    """Revoke the last site and watch its agent until it has ended."""
    name = consortium.names[-1]
    agent = consortium.children.pop(name)
    command = asyncio.create_task(operate(consortium, "site", "revoke", name, "--reason", REASON))
    try:
        observed.exit_code = await asyncio.to_thread(agent.wait, SETTLE_S)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name} still runs after its revocation\n{consortium.last_words()}") from error
    finally:
        if agent.poll() is None:
            agent.kill()
            agent.wait()
    observed.gone_ms = now_ms()
    await command


async def settled(consortium: Consortium) -> None:
    """Wait until the old authority is gone; sites that have just renewed show it with their next call."""
    end = time.monotonic() + SETTLE_S
    while time.monotonic() < end and not rows(consortium, "AuthorityRetired"):
        await asyncio.sleep(LOOK_EVERY_S)


# -- what must hold ---------------------------------------------------------------------------------


def judge(
    consortium: Consortium, plan: Plan, observed: Observed, before: dict[str, str]
) -> tuple[dict[str, Any], dict[str, bool]]:
    """The figures, and claim -> whether it holds."""
    rounds, their = judge_rounds(consortium, plan)
    identities, own = judge_identities(consortium, plan, observed, before)
    stay = consortium.names[:-1]
    claims = {
        **their,
        **own,
        "journals and heads verify": verified(consortium),
        "all hold the same model": len(models(consortium, stay)) == 1,
    }
    seconds = round((observed.ended_ms - observed.began_ms) / 1000, 1)
    return {"seconds": seconds, "certificate_s": plan.certificate_s, **rounds, **identities}, claims


def judge_rounds(consortium: Consortium, plan: Plan) -> tuple[dict[str, Any], dict[str, bool]]:
    """What became of the run."""
    stay, gone = consortium.names[:-1], consortium.names[-1]
    records = ask(consortium.home, lambda client: client.rounds(RUN))["rounds"]
    # Before the first round the model is seeded, behind the last one it is evaluated.
    training = [record for record in records if 1 <= record["index"] <= round_count(plan)]
    published = [record for record in training if record["version"] is not None]
    abandoned = [record for record in training if record["version"] is None]
    lost = [
        f"round {record['index']}: {site} {seat['standing']} ({seat['reason']})"
        for record in published
        for site, seat in record["seats"].items()
        if site in stay and seat["standing"] != "stored"
    ]
    end_ms = min((row["at_ms"] for row in rows(consortium, "MemberRevoked")), default=0)
    counted_late = [
        record["version"]
        for record in published
        if record["closed_ms"] > end_ms and any(order.endswith(f".{gone}") for order in record["counted"])
    ]
    report = {
        "versions": len(published),
        "attempts_abandoned": [f"{r['index']}.{r['attempt']}: {r['reason']}" for r in abandoned],
        "seats_lost": lost,
        "counted_after_revocation": counted_late,
    }
    versions = [record["version"] for record in published]
    claims = {
        "every round is published, once and in order": versions == list(range(1, round_count(plan) + 1)),
        "no site that stays loses a round": not lost,
        "an attempt is abandoned for the revoked site alone": all(gone in r["reason"] for r in abandoned),
        "nothing of the revoked site counts afterwards": not counted_late,
    }
    return report, claims


def judge_identities(
    consortium: Consortium, plan: Plan, observed: Observed, before: dict[str, str]
) -> tuple[dict[str, Any], dict[str, bool]]:
    """What became of certificates, authorities and the revoked site."""
    stay, gone = consortium.names[:-1], consortium.names[-1]
    renewals = Counter(row["name"] for row in rows(consortium, "MemberRenewed"))
    added, retired = rows(consortium, "AuthorityAdded"), rows(consortium, "AuthorityRetired")
    revoked = rows(consortium, "MemberRevoked")
    broken = {site: log(consortium, site).count("the session broke") for site in stay}
    lives = (observed.ended_ms - observed.began_ms) / 1000 / plan.certificate_s
    gone_s = (observed.gone_ms - revoked[0]["at_ms"]) / 1000 if revoked else float("inf")
    after = roots(consortium)
    report = {
        "renewals": {site: renewals[site] for site in consortium.names},
        "sessions_broken": broken,
        "roll_over_s": (retired[0]["at_ms"] - added[0]["at_ms"]) / 1000 if added and retired else None,
        "revoked_to_gone_s": round(gone_s, 2),
        "revoked_exit_code": observed.exit_code,
    }
    claims = {
        "every site renews throughout": all(renewals[site] >= int(lives) for site in stay),
        "no session breaks": not any(broken.values()),
        "the authority is replaced by one of another name": len(added) == len(retired) == 1
        and all(after[site] != before[site] for site in stay),
        "the revoked site is gone in time": len(revoked) == 1 and gone_s <= plan.gone_s,
        "it hears why, and ends as refused": observed.exit_code == 3 and REASON in log(consortium, gone),
    }
    return report, claims


def round_count(plan: Plan) -> int:
    """Rounds that last at least as long as the plan says."""
    return int(plan.run_s / STEP_S)


def rows(consortium: Consortium, kind: str) -> list[dict[str, Any]]:
    """The coordinator's journal: payloads of one kind."""
    found = Journal.open(consortium.home / "state" / "journal.db", writer=False)
    try:
        return [json.loads(row.payload) for row in found.read() if row.kind == kind]
    finally:
        found.close()


def roots(consortium: Consortium) -> dict[str, str]:
    """site -> the name of the authority that issued its certificate."""
    return {
        name: parse_certificate(
            load_member(consortium.site(name) / "state").certificate_pem
        ).issuer.rfc4514_string()
        for name in consortium.names
    }


def log(consortium: Consortium, site: str) -> str:
    """What its agent wrote."""
    return (consortium.folder / f"{site}.log").read_text(errors="replace")


def verified(consortium: Consortium) -> bool:
    """`audit verify` with the heads that the sites keep, and of every site's own journal."""
    journal = str(consortium.home / "state" / "journal.db")
    try:
        for name in consortium.names:
            state = consortium.site(name) / "state"
            consortium.command("audit", "verify", journal, "--heads", str(state / "heads"))
            consortium.command("audit", "verify", str(state / "journal.db"))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return False
    return True


def models(consortium: Consortium, sites: Iterable[str]) -> set[bytes]:
    """The public models that the sites hold, as bytes."""
    folders = [consortium.site(name) / "state" / "models" / RUN for name in sites]
    return {path.read_bytes() for folder in folders for path in folder.glob("*.safetensors")}


def now_ms() -> int:
    """UTC, as certificates and journals count it."""
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    sys.exit(main())
