"""Faults to be planted in a copy of the package, each with who has to catch it.

A catcher is `SIMULATION` (some worlds, which name the broken invariant) or one test, as pytest
names it; that test runs against the copy with the fault.
"""

from __future__ import annotations

from dataclasses import dataclass

SIMULATION = "simulation"


@dataclass(frozen=True)
class Mutation:
    """One planted fault: in `file` of the package, `before` becomes `after`.

    `seed` is the first one that is tried where the simulation is to catch it: one that is known to,
    so that no time is lost. Worlds change with their makers, so others are tried behind it.
    """

    name: str
    file: str
    before: str
    after: str
    catcher: str = SIMULATION
    seed: int = 1


DRIVER = (
    Mutation(
        "skip the journal",
        "core/driver.py",
        "self._journal.append([entry_of(event) for event in batch])",
        "[entry_of(event) for event in batch]",
    ),
    Mutation(
        "act before the journal",
        "core/driver.py",
        """                self._journal.append([entry_of(event) for event in batch])
                for event in batch:
                    self.state, effects = self._step(self.state, event)
                    for effect in effects:
                        self._actor.perform(effect)
""",
        """                for event in batch:
                    self.state, effects = self._step(self.state, event)
                    for effect in effects:
                        self._actor.perform(effect)
                self._journal.append([entry_of(event) for event in batch])
""",
    ),
    Mutation(
        "journal the first of a batch only",
        "core/driver.py",
        "self._journal.append([entry_of(event) for event in batch])",
        "self._journal.append([entry_of(event) for event in batch[:1]])",
        "tests/core/test_core_driver.py::test_journal_then_step_then_act",
    ),
    Mutation(
        "keep the inbox of a dead life",
        "core/driver.py",
        "        finally:\n            self._inbox.clear()\n            self._running = False\n",
        "        finally:\n            self._inbox.clear()\n",
        "tests/core/test_core_driver.py::test_a_death_amid_effects_leaves_a_usable_driver",
    ),
)

CORE = (
    Mutation(
        "count twice",
        "core/versions.py",
        "late=tuple(update for update in run.late if update.order not in counted),",
        "late=run.late,",
        seed=6,
    ),
    Mutation(
        "drop the late list",
        "core/uploads.py",
        "run = replace(run, late=(*run.late, _update(event, order)))",
        "run = replace(run, late=())",
        seed=6,
    ),
    Mutation(
        "ignore the quorum",
        "core/quorum.py",
        "    if len(present) < quorum:\n",
        '    if present:\n        return ""\n    if len(present) < quorum:\n',
        seed=2,
    ),
    Mutation(
        "forget a refusal",
        "core/seats.py",
        "run = replace(run, excluded=put(run.excluded, site, exclusion))",
        "run = replace(run, excluded=run.excluded)",
        seed=4,
    ),
    Mutation(
        "take the wrong base version",
        "core/uploads.py",
        "base_version=order.model.version if order.model else 0,",
        "base_version=0,",
    ),
    Mutation(
        "lose the seats of an abandoned attempt",
        "core/rounds.py",
        "keep = {Standing.STORED, Standing.DONE, Standing.INVITED, Standing.WORKING}",
        "keep = {Standing.INVITED, Standing.WORKING}",
        seed=2,
    ),
    Mutation(
        "give a stale update its full weight",
        "core/rounds.py",
        "weight=update.weight / math.sqrt(1 + opened.base_version - update.base_version),",
        "weight=float(update.weight),",
        seed=6,
    ),
    Mutation(
        "sum in another order",
        "core/rounds.py",
        "key=lambda update: (update.site, -update.round))",
        "key=lambda update: (update.round, update.site))",
        seed=6,
    ),
    Mutation(
        "return a residual twice",
        "core/uploads.py",
        "back = tuple(name for name in run.returned.get(site, ()) if name not in order.returned)",
        "back = run.returned.get(site, ())",
        seed=55,
    ),
    Mutation(
        "take heartbeats for progress",
        "core/liveness.py",
        "if beat is not None and item.counter > beat.counter:",
        "if beat is not None:",
        "tests/core/test_core_liveness.py::test_work_that_does_not_move_is_stalled",
    ),
    Mutation(
        "forget who is late",
        "core/advance.py",
        "return replace(run, busy={**run.busy, **late}), NOTHING",
        "return replace(run, busy={**run.busy}), NOTHING",
        "tests/scenarios/test_scenarios.py::test_scenario[late_next_round]",
    ),
    Mutation(
        "take a second story for a repetition",
        "core/uploads.py",
        "        if receipt.blob == blob:\n",
        "        if receipt.blob:\n",
        "tests/scenarios/test_scenarios.py::test_scenario[equivocation]",
    ),
    Mutation(
        "let an old take-over catch up",
        "core/epochs.py",
        "    if chance is None:\n        return epoch + 1\n",
        "    return epoch + 1\n",
        seed=20,
    ),
    Mutation(
        "answer while fenced",
        "core/transitions.py",
        "    if state.fenced and not isinstance(event, ev.Booted):\n",
        "    if state.fenced and isinstance(event, ev.SiteLost):\n",
        "tests/scenarios/test_scenarios.py::test_scenario[take_over]",
    ),
    Mutation(
        "keep the receipt of a damaged update",
        "core/uploads.py",
        "            if receipt is not None and receipt.order == seat.order.id:\n",
        "            if receipt is not None and receipt.order != seat.order.id:\n",
        seed=18,
    ),
    Mutation(
        "start with whoever is there after a restart",
        "core/cohort.py",
        "patience_end_ms = max(run.waiting_since_ms, state.booted_ms) + run.spec.patience_ms",
        "patience_end_ms = run.waiting_since_ms",
        "tests/scenarios/test_scenarios.py::test_scenario[restart_waits_for_sites]",
    ),
)

AGENT = (
    Mutation(
        "obey a lower epoch",
        "core/agent.py",
        "    higher = event.epoch > state.epoch\n",
        "    higher = event.epoch != state.epoch\n",
        "tests/core/test_core_agent.py::test_epochs_only_rise",
    ),
    Mutation(
        "go on under a contract that forbids it",
        "core/agent.py",
        "        if decision.accepted or held.stage is Stage.DELIVERED:\n",
        "        if held.order.id:\n",
        "tests/scenarios/test_scenarios.py::test_scenario[contract_changed]",
    ),
    Mutation(
        "let go of acknowledged bytes",
        "core/agent.py",
        'if held is None or held.order.kind is not OrderKind.TRAIN or event.outcome == "late_residual":',
        "if held is None or held.order.id:",
        "tests/scenarios/test_scenarios.py::test_scenario[take_over_from_an_older_copy]",
    ),
    Mutation(
        "begin anew at a repeated order",
        "core/agent.py",
        "    if known is not None and known.order == order:\n",
        "    if known is not None and known.order != order:\n",
        "tests/scenarios/test_scenarios.py::test_scenario[repeated_order]",
    ),
    Mutation(
        "forget work at a restart",
        "core/agent.py",
        "    return state, (*effects, *resume(state))\n",
        "    return state, (*effects,)\n",
        "tests/scenarios/test_scenarios.py::test_scenario[agent_restarts]",
    ),
    Mutation(
        "keep counted bytes for ever",
        "core/agent.py",
        "return held.stage is Stage.DELIVERED and counted_in < round_index",
        "return held.stage is Stage.DELIVERED and counted_in < 0",
        "tests/scenarios/test_scenarios.py::test_scenario[kept_until_counted]",
    ),
)

CLOCK = Mutation(
    "read a clock",
    "core/transitions.py",
    "    state = replace(state, now_ms=max(state.now_ms, event.at_ms))\n",
    "    import time\n\n    state = replace(state, now_ms=time.time_ns() // 1_000_000)\n",
    "tests/test_architecture.py",
)
"""What the architecture's import table has to find, on the copy itself."""
