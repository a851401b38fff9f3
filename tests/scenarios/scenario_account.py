"""How a scenario tells what has changed at the coordinator: records, standings, seats."""

from __future__ import annotations

from typing import Any

from fedtrain.core.state import RoundRecord, RunState, Seat, SeatRecord, State


def changes(before: State, after: State) -> list[str]:
    """What is different now: attempts that were recorded, and where each run stands."""
    lines: list[str] = []
    for name, run in after.runs.items():
        old = before.runs.get(name)
        lines += [f"{name}: {recorded(record)}" for record in run.records[len(old.records) if old else 0 :]]
        if old is None or standing(old) != standing(run):
            lines.append(f"{name} {standing(run)}")
    return lines


def standing(run: RunState) -> str:
    """Where a run stands: phase, why, and its seats."""
    paused = f", paused: {run.paused}" if run.paused else ""
    opened = run.round
    if opened is None or run.phase == "waiting":
        return f"is {run.phase} ({run.reason}){paused}"
    return f"is {run.phase} {opened.index}.{opened.attempt}{paused}: {_seats(opened.seats)}"


def recorded(record: RoundRecord) -> str:
    """An attempt's account in one line."""
    again = f", version {record.version} is version {record.restored} again"
    led = (
        ""
        if record.version is None
        else again
        if record.restored is not None
        else f", version {record.version} of {' + '.join(record.counted) or 'it'}"
    )
    return (
        f"record {record.index}.{record.attempt}{led} ({record.reason}): {_seats(record.seats) or 'nobody'}"
    )


def _seats(seats: Any) -> str:
    def told(site: str, seat: Seat | SeatRecord) -> str:
        return f"{site} {seat.standing}{f' ({seat.reason})' if seat.reason else ''}"

    return ", ".join(told(site, seat) for site, seat in seats.items())


def listed(mapping: Any) -> str:
    """Names with what belongs to them."""

    def told(value: Any) -> str:
        return value if isinstance(value, str) else " + ".join(value)

    return ", ".join(f"{site} {told(value)}" for site, value in sorted(mapping.items())) or "none"
