"""`fedtrain peer check`: everything that a site can find out before its first order, a line each.

Nothing is changed and nobody is disturbed: no lock is taken, no session opened, no order claimed. So it
may run beside an agent at work.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import fcntl
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedtrain.errors import ConfigError, FedtrainError, RefusedError, StorageError
from fedtrain.peer.link import measure_link
from fedtrain.peer.probing import ENFORCED, EXTERNAL_S, START_S, ask_trainer, judge_walls
from fedtrain.peer.settings import AgentSettings
from fedtrain.storage.filesystem import disk_errors, network_type
from fedtrain.storage.mailbox import Count, Finding
from fedtrain.trust.certificates import read_certificate, renew_at_ms, utc_text
from fedtrain.trust.folders import MemberKeys, load_member
from fedtrain.trust.identity import Role
from fedtrain.wire.status import printable

COUNT_S = 20
"""For counting each data set; what is larger than that is counted in part, and said to be."""

CLOCK_WARNING_MS = 2_000
CLOCK_FAILURE_MS = 60_000
"""Certificates and the contract's hours are judged by the clock; a minute is more than any of them bears."""

FREE_WARNING_BYTES = 5 << 30
FREE_FAILURE_BYTES = 256 << 20
SYNC_WARNING_MS = 100.0
SYNCS = 5


class Outcome(enum.StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Check:
    """One line. `exit_code` is what the command ends with if this is the worst."""

    check: str
    outcome: Outcome
    found: str
    remedy: str = ""
    exit_code: int = 0


def preflight(settings: AgentSettings, *, count_s: int = COUNT_S) -> tuple[Check, ...]:
    """All checks, in the order in which a person would mend what they find."""
    checks = list(_check_contract(settings))
    try:
        keys = load_member(settings.state)
    except FedtrainError as error:
        checks.append(_failed("certificate", error))
    else:
        checks.append(_check_certificate(settings, keys))
        checks += _check_link(settings, keys)
    checks.append(_check_agent(settings))
    checks += _check_disk("state", settings.state)
    checks += _check_disk("mailbox", settings.mailbox)
    checks += _check_trainer(settings, count_s)
    return tuple(checks)


def exit_code(checks: tuple[Check, ...]) -> int:
    """0 if nothing failed, else that of the worst: what a person corrects here, refusals, the network."""
    codes = [check.exit_code for check in checks if check.outcome is Outcome.FAILED]
    return min(codes, key=lambda code: (code not in (2, 3, 4, 5), code)) if codes else 0


def _ok(check: str, found: str) -> Check:
    return Check(check, Outcome.OK, found)


def _warning(check: str, found: str, remedy: str) -> Check:
    return Check(check, Outcome.WARNING, found, remedy)


def _failed(check: str, error: FedtrainError) -> Check:
    """An error's sentence says what was found and, behind its first colon or in itself, what to do."""
    return Check(check, Outcome.FAILED, printable(str(error)), exit_code=error.exit_code)


# -- what is written ----------------------------------------------------------------------------


def _check_contract(settings: AgentSettings) -> Iterator[Check]:
    contract, file = settings.contract, settings.data_file
    if not contract.runs or not contract.tasks:
        empty = " and ".join(name for name in ("runs", "tasks") if not getattr(contract, name))
        yield _warning(
            "contract", f"it allows nothing: contract.{empty} is empty", f"list what you allow in {file}"
        )
    else:
        allowed = f"runs {', '.join(contract.runs)}; tasks {', '.join(contract.tasks)}"
        yield _ok("contract", f"{allowed}; cohort of at least {contract.cohort_min}")
    if contract.cohort_min < 2:
        yield _warning(
            "contract",
            "contract.cohort_min is 1: a round of this site alone would publish its own update",
            "set it to 2 or more",
        )
    usable = {task for rights in contract.datasets.values() for task in rights.execute}
    for task in contract.tasks:
        if contract.datasets and task not in usable:
            yield _warning(
                "contract",
                f"contract.tasks allows {task}, and no data set does",
                f"list it under rights.execute of a data set, or take it out, in {file}",
            )


# -- who we are, and where the coordinator is -----------------------------------------------------


def _check_certificate(settings: AgentSettings, keys: MemberKeys) -> Check:
    member, facts, now_ms = keys.membership, read_certificate(keys.certificate_pem), _now_ms()
    if member.role is not Role.SITE or member.name != settings.site or facts.identity != member.identity:
        return _failed(
            "certificate",
            ConfigError(
                f"the certificate is for {facts.identity}, the file says site {settings.site}: correct"
                " the name, or join as that site",
                file=str(settings.data_file),
                key="site",
            ),
        )
    if now_ms >= facts.not_after_ms:
        return _failed(
            "certificate",
            RefusedError(
                f"expired at {utc_text(facts.not_after_ms)}, and here it is {utc_text(now_ms)}: set the clock"
                " if that is wrong, else ask an operator for a new invite and join again"
            ),
        )
    if now_ms < facts.not_before_ms:
        return _failed(
            "certificate",
            RefusedError(f"is valid from {utc_text(facts.not_before_ms)} on: set this machine's clock"),
        )
    renewal = f"the agent renews it from {utc_text(renew_at_ms(facts))} on"
    return _ok("certificate", f"{facts.identity}, valid till {utc_text(facts.not_after_ms)}; {renewal}")


def _check_link(settings: AgentSettings, keys: MemberKeys) -> Iterator[Check]:
    try:
        link = asyncio.run(measure_link(settings, keys))
    except FedtrainError as error:
        yield _failed("link", error)
        return
    yield _ok(
        "link",
        f"{settings.coordinator} answers in {link.latency_ms:.1f} ms (median); throughput not measured",
    )
    if link.ahead_ms is None:
        yield _warning(
            "clock", "not compared: the coordinator, an older one, does not tell its time", "use NTP"
        )
        return
    way = "ahead of" if link.ahead_ms > 0 else "behind"
    found = f"{abs(link.ahead_ms) / 1000:.2f} s {way} the coordinator's"
    remedy = "set this machine's clock (NTP): certificates and the contract's hours are judged by it"
    if abs(link.ahead_ms) >= CLOCK_FAILURE_MS:
        yield _failed("clock", ConfigError(f"{found}: {remedy}"))
    elif abs(link.ahead_ms) >= CLOCK_WARNING_MS:
        yield _warning("clock", found, remedy)
    else:
        yield _ok("clock", found)


# -- this machine ---------------------------------------------------------------------------------


def _check_agent(settings: AgentSettings) -> Check:
    """Whether one runs. Its lock is looked at and not kept."""
    try:
        descriptor = os.open(settings.state / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _ok("agent", "none has run here yet")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _ok("agent", "one is running, and goes on")
    except OSError as error:
        return _warning("agent", f"not known: {error.strerror}", "look whether the disk can lock files")
    finally:
        os.close(descriptor)
    return _ok("agent", "none is running")


def _check_disk(name: str, folder: Path) -> Iterator[Check]:
    check = f"disk {name}"
    if not folder.is_dir():
        yield _warning(check, f"{folder} does not exist yet", "join, or run the agent once")
        return
    try:
        with disk_errors(f"measure the disk of {folder}"):
            disk = os.statvfs(folder)
            sync_ms = _sync_ms(folder)
    except StorageError as error:
        yield _failed(check, error)
        return
    free = disk.f_bavail * disk.f_frsize
    found = f"{free / 1e9:.1f} GB free, a write is durable after {sync_ms:.1f} ms"
    if free < FREE_FAILURE_BYTES:
        yield _failed(check, StorageError(f"{found}: free some space in {folder}"))
    elif free < FREE_WARNING_BYTES:
        yield _warning(check, found, f"models and updates are kept in {folder}: free some space")
    elif sync_ms > SYNC_WARNING_MS:
        yield _warning(check, found, "every event waits for that: put it on another disk")
    else:
        yield _ok(check, found)
    if kind := network_type(folder):
        yield _warning(
            check,
            f"{folder} lies on {kind}",
            "locks and memory maps cannot be relied on there: use a local disk"
            if name == "state"
            else "it is polled, so orders are seen up to 2 s later",
        )


def _sync_ms(folder: Path) -> float:
    """Median time until 4 KiB are on the disk; `OSError` if it refuses."""
    path = folder / f".check-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        times_ms = []
        for _ in range(SYNCS):
            began_s = time.monotonic()
            os.pwrite(descriptor, bytes(4096), 0)
            os.fsync(descriptor)
            times_ms.append((time.monotonic() - began_s) * 1000)
    finally:
        os.close(descriptor)
        path.unlink()
    return statistics.median(times_ms)


# -- the trainer ----------------------------------------------------------------------------------


def _check_trainer(settings: AgentSettings, count_s: int) -> Iterator[Check]:
    launched = settings.launch == "process"
    patience_s = count_s * len(settings.data_files) + (START_S if launched else EXTERNAL_S)
    began_s = time.monotonic()
    try:
        finding = ask_trainer(settings, count_s, patience_s)
    except FedtrainError as error:
        yield _failed("trainer", error)
        return
    said = f"{printable(finding.trainer)} (fedtrain {printable(finding.version)})"
    yield _ok("trainer", f"{said} answered through the mailbox in {time.monotonic() - began_s:.1f} s")
    yield from _check_data(settings, finding)
    for wall in judge_walls(settings, finding):
        if wall.stands:
            yield _ok(f"wall {wall.name}", wall.found)
        elif settings.isolation == "required" and wall.name in ENFORCED:
            code = ConfigError.exit_code
            yield Check(f"wall {wall.name}", Outcome.FAILED, wall.found, wall.remedy, code)
        else:
            yield _warning(f"wall {wall.name}", wall.found, wall.remedy)


def _check_data(settings: AgentSettings, finding: Finding) -> Iterator[Check]:
    file = str(settings.data_file)
    for name in settings.data_files:
        key = f"datasets.{name}"
        count = finding.counts.get(name)
        if count is None:
            wrong = "the trainer knows no such data set: give it this file with --data, and start it again"
            yield _failed(f"data {name}", ConfigError(wrong, file=file, key=key))
        elif count.failure:
            yield _failed(f"data {name}", ConfigError(count.failure, file=file, key=key))
        elif not count.records:
            yield _failed(f"data {name}", ConfigError("it is empty", file=file, key=f"{key}.path"))
        else:
            yield _ok(f"data {name}", _counted(count))
        for task in settings.contract.datasets[name].execute if name in settings.contract.datasets else ():
            if task not in finding.tasks:
                installed = ", ".join(finding.tasks) or "none"
                missing = f"the task {task!r} is not installed where the trainer runs; installed: {installed}"
                yield _failed(f"data {name}", ConfigError(missing, file=file, key=f"{key}.rights.execute"))


def _counted(count: Count) -> str:
    least = "" if count.whole else "at least "
    held = f"{count.examples} examples for {printable(count.task)}"
    return f"{least}{count.records} records, {count.size_bytes} bytes, {held}"


def plain(checks: tuple[Check, ...]) -> list[dict[str, str]]:
    """As documents."""
    keys = ("check", "outcome", "found", "remedy")
    return [{key: str(dataclasses.asdict(check)[key]) for key in keys} for check in checks]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
