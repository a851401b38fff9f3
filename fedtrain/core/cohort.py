"""Who works in the next round, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from fedtrain.core.spec import RunSpec
from fedtrain.core.state import RunState, Standing, State


@dataclass(frozen=True)
class Choice:
    """`members` is None while no round can start; `wake_ms` is when to look again by the clock."""

    members: tuple[str, ...] | None
    reason: str
    wake_ms: int | None = None


def roster(state: State) -> dict[str, str]:
    """Site -> the organisation that it belongs to, of all that are members now."""
    return {
        member.name: member.organisation or member.name
        for member in state.members.values()
        if member.role == "site" and not member.revoked
    }


def expected_sites(state: State, spec: RunSpec) -> tuple[str, ...]:
    """Sites in good standing that the run's file includes, sorted."""
    sites = set(roster(state)) - set(state.quarantined)
    return tuple(sorted(sites & set(spec.sites) if spec.sites else sites))


def choose_cohort(state: State, run: RunState) -> Choice:
    """The members of the next attempt: everybody who is there, may, and is not busy.

    At the start and after a restart it waits for every expected site until the patience is spent:
    a run whose fastest site began alone would not be the run that was asked for.
    """
    expected = expected_sites(state, run.spec)
    willing = [site for site in expected if not _excluded(state, run, site)]
    present = [site for site in willing if site in state.attached]
    absent = [site for site in willing if site not in state.attached]
    patience_end_ms = max(run.waiting_since_ms, state.booted_ms) + run.spec.patience_ms
    if absent and state.now_ms < patience_end_ms:
        return Choice(None, f"waiting for {', '.join(absent)}", patience_end_ms)
    seated = _seated(run)
    free = [site for site in present if site not in run.busy and site not in seated]
    members = sorted({*seated, *free})
    bound = run.round.bound if run.round else ()
    if bound and not set(bound) <= set(members):
        # Sites that have opened shares open no other set's: its sum would tell this one's parts apart.
        away = ", ".join(site for site in bound if site not in members)
        why = _why(state, run, willing, absent)
        return Choice(
            None,
            f"the sum of {', '.join(bound)} was to be opened, so no other one can be, and {away} is not here"
            f"{why}: bring it back, take the run back by a version, or stop it",
        )
    members = list(bound) or members
    needed = len(bound) or max(run.spec.minimum, run.spec.quorum)
    if len(members) < needed:
        return Choice(
            None, f"{len(members)} of {needed} needed sites are here{_why(state, run, willing, absent)}"
        )
    return Choice(
        tuple(members), f"{len(members)} of {len(expected)} sites{_why(state, run, willing, absent)}"
    )


def _seated(run: RunState) -> list[str]:
    """Sites that keep their seat from an abandoned attempt at the same round."""
    if run.round is None:
        return []
    keep = {Standing.STORED, Standing.INVITED, Standing.WORKING}
    return [site for site, seat in run.round.seats.items() if seat.standing in keep]


def _excluded(state: State, run: RunState, site: str) -> bool:
    """Whether the site refused, and has not come back with a new session since."""
    exclusion = run.excluded.get(site)
    if exclusion is None:
        return False
    attached = state.attached.get(site)
    return attached is None or attached.session == exclusion.session


def _why(state: State, run: RunState, willing: list[str], absent: list[str]) -> str:
    """The missing ones and why, as a clause behind the count."""
    parts, expected = [], expected_sites(state, run.spec)
    if absent:
        parts.append(f"absent: {', '.join(absent)}")
    busy = [site for site in expected if site in run.busy]
    if busy:
        parts.append(f"still at an earlier round: {', '.join(busy)}")
    parts += [f"{site} refused: {run.excluded[site].reason}" for site in expected if site not in willing]
    barred = [site for site in sorted(state.quarantined) if site in (run.spec.sites or roster(state))]
    if barred:
        parts.append(f"in quarantine: {', '.join(barred)}")
    return f" ({'; '.join(parts)})" if parts else ""
