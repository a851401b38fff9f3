"""The words of a scenario: one line is one thing that happens, to the coordinator or to an agent.

    boot | boot take-over            the coordinator starts (again)
    enrol north role=site            a member joins
    attach north holding=ORDER,...   its agent opens a session
    submit run-1 rounds=2 quorum=2   an operator starts a run; any field of a run's file
    commit ORDER weight=3            an upload as the shell takes it: admitted, stored, acknowledged
    wait 10s                         time passes, timers fire
    agent north receives ORDER       the site's own machine

A command of the coordinator may end in `crash=before-journal`, `crash=after-journal` or `crash=amid`:
the process dies there, and nothing but `boot` is heard until it is up again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from scenario_agent import Agent
from scenario_coordinator import Coordinator, ScenarioError

__all__ = ["ScenarioError", "Script"]


class Script:
    """One scenario under way: a coordinator, and the agents that were spoken of."""

    def __init__(self) -> None:
        self._coordinator = Coordinator()
        self._agents: dict[str, Agent] = {}

    def obey(self, command: str) -> list[str]:
        """Do what the line says; the answer as lines."""
        try:
            verb, *words = shlex.split(command)
        except ValueError as error:
            raise ScenarioError(str(error)) from error
        plain = [word for word in words if "=" not in word]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        machine: object = self._coordinator
        if verb == "agent":
            if len(plain) < 2:
                raise ScenarioError("say which agent, and what it does")
            machine, verb, plain = self._agent(plain[0]), plain[1], plain[2:]
        act: Callable[..., list[str]] | None = getattr(machine, f"do_{verb.replace('-', '_')}", None)
        if act is None:
            known = ", ".join(
                sorted(name[3:].replace("_", "-") for name in dir(machine) if name[:3] == "do_")
            )
            raise ScenarioError(f"{verb!r} is none of {known}")
        try:
            answer = act(*plain, **options)
        except TypeError as error:
            raise ScenarioError(str(error)) from error
        return answer or ["nothing"]

    def _agent(self, site: str) -> Agent:
        if site not in self._agents:
            self._agents[site] = Agent(site, self._coordinator)
        return self._agents[site]
