"""Documents for people and programs: the shape of every `--json` answer about runs and members.

Keys are a contract. A document holds nothing that the journal does not, except the live progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedtrain.core.canonical import to_plain
from fedtrain.core.cohort import expected_sites
from fedtrain.core.disclosure import disclosure
from fedtrain.core.orders import Progress
from fedtrain.core.rollback import restorable
from fedtrain.core.state import Member, OpenRound, RoundRecord, RunState, Seat, State
from fedtrain.trust.certificates import read_certificate, utc_text

Document = dict[str, Any]

MISUSES_SHOWN = 20
"""The newest; the journal has all."""


def runs_view(state: State) -> Document:
    """`run list`."""
    return {"runs": [_summary(run) for _, run in sorted(state.runs.items())]}


def run_view(state: State, run: RunState, progress: Mapping[str, Progress]) -> Document:
    """`run show` and each step of `run watch`."""
    published = [record for record in run.records if record.version is not None]
    return {
        "kind": "run",
        **_summary(run),
        "sites": {site: _site_view(state, run, site) for site in expected_sites(state, run.spec)},
        "quarantined": _quarantined_view(state, run),
        "restoring": run.restoring,
        "restorable": list(restorable(run.model)) if run.model else [],
        "round": _open_view(run.round, progress) if run.round else None,
        "last": record_view(published[-1]) if published else None,
        "evaluations": {
            site: {"version": version, "loss": loss, "count": count}
            for site, (version, loss, count) in sorted(run.evaluations.items())
        },
        "bytes_up": sum(record.bytes_up for record in published),
        "bytes_down": sum(record.bytes_down for record in published),
        "num_elements": run.model.num_elements if run.model else 0,
        "privacy": disclosure(run.spec.task, run.charges),
        "spec": to_plain(run.spec),
    }


def rounds_view(run: RunState) -> Document:
    """`run rounds`: one entry per attempt, abandoned ones too."""
    return {"run": run.spec.run, "rounds": [record_view(record) for record in run.records]}


def models_view(run: RunState) -> Document:
    """`model list`: every published version; `exportable` ones can still be had as a whole model."""
    newest = run.model.ref.version if run.model else -1
    return {
        "run": run.spec.run,
        "models": [
            {
                "version": record.version,
                "model_digest": record.model_digest,
                "round": record.index,
                "at_ms": record.closed_ms,
                "contributors": sorted(record.counted),
                "exportable": record.version == newest,
            }
            for record in run.records
            if record.version is not None
        ],
    }


def members_view(state: State, misuses: Sequence[Mapping[str, Any]] = ()) -> Document:
    """`site list`: members, invites that wait to be used, and what was tried with others."""
    used = {member.invite for member in state.members.values()}
    return {
        "members": [member_view(state, member) for _, member in sorted(state.members.items())],
        "invites": [
            {"name": invite.name, "role": invite.role, "expires_ms": invite.expires_ms}
            for fingerprint, invite in sorted(state.invites.items(), key=lambda item: item[1].name)
            if fingerprint not in used and not invite.used_by and invite.expires_ms > state.now_ms
        ],
        "misuses": [
            {"name": misuse["name"], "reason": misuse["reason"], "at_ms": misuse["at_ms"]}
            for misuse in misuses[-MISUSES_SHOWN:]
        ],
    }


def member_view(state: State, member: Member) -> Document:
    """`site show`."""
    attached = state.attached.get(member.name)
    quarantine, declared = state.quarantined.get(member.name), state.declared.get(member.name)
    facts = read_certificate(member.certificate.encode())
    return {
        "name": member.name,
        "role": member.role,
        "organisation": member.organisation,
        "revoked": member.revoked,
        "quarantined": f"by {quarantine.by}: {quarantine.reason}" if quarantine else "",
        "examples": dict(declared.examples) if declared else {},
        "attached": attached is not None,
        "version": attached.version if attached else "",
        "since_ms": attached.since_ms if attached else None,
        "fingerprint": facts.fingerprint,
        "expires_ms": facts.not_after_ms,
        "expires": utc_text(facts.not_after_ms),
        "message_key": member.message_key,
        "runs": sorted(
            name for name, run in state.runs.items() if member.name in expected_sites(state, run.spec)
        ),
    }


def record_view(record: RoundRecord) -> Document:
    """One closed or abandoned attempt at a round."""
    return {
        "index": record.index,
        "attempt": record.attempt,
        "version": record.version,
        "reason": record.reason,
        "opened_ms": record.opened_ms,
        "closed_ms": record.closed_ms,
        "seconds": (record.closed_ms - record.opened_ms) / 1000,
        "seats": to_plain(record.seats),
        "counted": list(record.counted),
        "model_digest": record.model_digest,
        "update_norm": record.update_norm,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "restored": record.restored,
    }


def _summary(run: RunState) -> Document:
    return {
        "run": run.spec.run,
        "phase": "paused" if run.paused else run.phase.value,
        "reason": run.paused or run.reason,
        "version": run.rounds_done,
        "rounds": run.spec.rounds,
        "submitted_ms": run.submitted_ms,
        "model_digest": run.model.ref.digest if run.model else "",
    }


def _site_view(state: State, run: RunState, site: str) -> Document:
    excluded = run.excluded.get(site)
    return {
        "attached": site in state.attached,
        "refused": excluded.reason if excluded else "",
        "busy": run.busy[site].id if site in run.busy else "",
    }


def _quarantined_view(state: State, run: RunState) -> Document:
    """Sites that would have a part in this run and are in quarantine."""
    return {
        site: {"reason": found.reason, "by": found.by, "since_ms": found.since_ms}
        for site, found in sorted(state.quarantined.items())
        if not run.spec.sites or site in run.spec.sites
    }


def _open_view(opened: OpenRound, progress: Mapping[str, Progress]) -> Document:
    return {
        "index": opened.index,
        "attempt": opened.attempt,
        "opened_ms": opened.opened_ms,
        "deadline_ms": opened.deadline_ms,
        "reason": opened.reason,
        "seats": {site: _seat_view(seat, progress.get(seat.order.id)) for site, seat in opened.seats.items()},
    }


def _seat_view(seat: Seat, progress: Progress | None) -> Document:
    update = seat.update
    loss = update.train_loss if update else (progress.loss if progress else None)
    return {
        "standing": seat.standing.value,
        "reason": seat.reason,
        "steps": update.steps if update else (progress.steps if progress else 0),
        "steps_total": seat.order.steps,
        "loss": loss,
        "tokens_per_s": progress.tokens_per_s if progress else 0.0,
        "bytes_up": update.size_bytes if update else 0,
    }
