"""`fedtrain peer pending | approve | deny | withdraw`: the last word of the site's people on a run.

They work whether the agent runs or not: a word is left in the state folder, and the agent takes it at
once, or at its next start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedtrain.cli import output
from fedtrain.cli.options import Json, RunName

if TYPE_CHECKING:
    from fedtrain.peer.decisions import Decision

PEER_FILE = "peer.yaml"

TAKEN_S = 3.0
"""How long a command waits for a running agent to take a word; one that runs needs some milliseconds."""

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="The coordinator is told this.")]


def pending(folder: Folder, json: Json = False) -> None:
    """Runs that wait for a word of this site, since when, and what they ask."""
    from fedtrain.core.canonical import to_plain
    from fedtrain.peer.standing import open_standing

    with open_standing(_state(folder)) as standing:
        waiting = [to_plain(found) for found in standing.waiting()]
    if not waiting and not json:
        output.say("Nothing waits for a word.")
        return
    output.emit({"pending": waiting}, json)


def approve(folder: Folder, run: RunName, json: Json = False) -> None:
    """Let a run begin here that waits for it, or that was denied or withdrawn from before."""
    from fedtrain.peer.standing import Standing

    _say(folder, "approve", run, "", json, Standing.check_approvable)


def deny(folder: Folder, run: RunName, reason: Reason = "", json: Json = False) -> None:
    """Keep a run out. What this site has in hand for it is withdrawn."""
    from fedtrain.peer.standing import Standing

    _say(folder, "deny", run, reason, json, Standing.check_deniable)


def withdraw(folder: Folder, run: RunName, reason: Reason = "", json: Json = False) -> None:
    """Take back the consent to a run: what is in no model version yet does not get there."""
    from fedtrain.peer.standing import Standing

    _say(folder, "withdraw", run, reason, json, Standing.check_withdrawable)


def speak(state: Path, decision: Decision) -> bool:
    """Hand a word to the agent of this state folder; whether it has taken it."""
    from fedtrain.peer import decisions

    return decisions.await_taken(decisions.put(state, decision), TAKEN_S)


def _say(folder: Path, kind: str, run: str, reason: str, json: bool, check: Any) -> None:
    from fedtrain.peer import decisions
    from fedtrain.peer.standing import open_standing

    state = _state(folder)
    with open_standing(state) as standing:
        check(standing, run)
    taken = speak(state, decisions.Decision(kind, run, reason, decisions.person()))
    what = "the agent has taken it" if taken else "no agent runs here: it is taken at the next start"
    output.emit({"run": run, "decision": kind, "taken": taken, "reason": what}, json)


def _state(folder: Path) -> Path:
    from fedtrain.config import load_peer

    return Path(load_peer(folder / PEER_FILE).state)
