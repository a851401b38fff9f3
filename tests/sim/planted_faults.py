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
        seed=3,
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
        seed=9,
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

LEAVING = (
    Mutation(
        "count a late update of a site that has left",
        "core/removal.py",
        "late=tuple(update for update in run.late if update.site != site),",
        "late=run.late,",
    ),
    Mutation(
        "sum on with a site that has left",
        "core/removal.py",
        "if run.phase is not Phase.AGGREGATING or not gone & set(opened.counted):",
        "if run.phase is not Phase.AGGREGATING or opened.counted:",
    ),
    Mutation(
        "let what has left come back in a residual",
        "core/removal.py",
        "        returned=without(run.returned, site),\n",
        "",
    ),
    Mutation(
        "leave a lost site its seat",
        "core/removal.py",
        "_AWAITED = AT_WORK | {Standing.LOST}",
        "_AWAITED = AT_WORK",
        "tests/core/test_core_removal.py::test_a_lost_site_cannot_come_back_with_its_update",
    ),
    Mutation(
        "ask a site again that has withdrawn",
        "core/transitions.py",
        "run = replace(run, excluded=put(run.excluded, event.site, exclusion))",
        "run = replace(run, excluded=run.excluded)",
    ),
    Mutation(
        "keep a revoked site in the cohort",
        "core/cohort.py",
        'if member.role == "site" and not member.revoked',
        'if member.role == "site"',
        "tests/core/test_core_removal.py::test_revoked_for_good_and_invited_again",
    ),
    Mutation(
        "keep a site in quarantine that was released",
        "core/membership.py",
        "quarantined=without(state.quarantined, event.site),",
        "quarantined=state.quarantined,",
    ),
    Mutation(
        "forgive every strike",
        "core/conduct.py",
        "strikes = state.strikes.get(site, 0) + 1",
        "strikes = 1",
    ),
    Mutation(
        "remember every strike",
        "core/conduct.py",
        "return replace(state, strikes=without(state.strikes, _site(event.order))), ()",
        "return state, ()",
    ),
    Mutation(
        "invite who is on the way out",
        "core/transitions.py",
        """    state, effects = conduct.note(state, event)
    run = state.runs[name]
    handler = TABLE.get((run.phase, type(event)))
    if handler is None:
        return state, effects
    state, more = settle(state, name, handler(state, run, event))
    return state, effects + more
""",
        """    state, effects = settle(state, name, TABLE[run.phase, type(event)](state, run, event))
    state, more = conduct.note(state, event)
    return state, effects + more
""",
        "tests/core/test_core_conduct.py::test_no_attempt_begins_with_who_is_on_the_way_out",
    ),
)

GOING_BACK = (
    Mutation("go back and keep the parents", "core/rollback.py", "        parents={},\n", ""),
    Mutation("go back and count what was late", "core/rollback.py", "        late=(),\n", ""),
    Mutation(
        "go back and make no more rounds",
        "core/rollback.py",
        "rounds=run.spec.rounds + event.round - restored",
        "rounds=run.spec.rounds",
    ),
    Mutation(
        "forget at a restart that the run goes back",
        "core/advance.py",
        "        return (rollback.restoration(run),)\n",
        "        return NOTHING\n",
        "tests/core/test_core_rollback.py::test_a_failure_pauses_and_is_tried_again",
    ),
    Mutation(
        "take any version for the one that was asked for",
        "core/rollback.py",
        "if event.model_digest != digest_of(run, restored):",
        'if event.model_digest == "":',
        "tests/core/test_core_rollback.py::test_another_version_meanwhile",
    ),
    Mutation(
        "let a sum that was called off stop the way back",
        "core/rollback.py",
        "if (event.round, event.attempt) != (next_index(run), NO_ATTEMPT):",
        "if event.round != next_index(run):",
        "tests/core/test_core_rollback.py::test_while_a_version_is_summed",
    ),
    Mutation(
        "collect the way back",
        "core/versions.py",
        "past = run.model.past if run.model and run.phase not in ENDED else ()",
        "past = ()",
        "tests/core/test_core_rollback.py::test_the_way_there_is_kept",
    ),
)

CONSENT = (
    Mutation(
        "send what is held",
        "core/agent.py",
        "if result.file and state.contract.approval is Approval.HOLD:",
        "if result.file and state.contract.approval is Approval.MANUAL:",
    ),
    Mutation(
        "forget at a restart what was said",
        "core/agent.py",
        "state = replace(state, contract=event.contract, held=MappingProxyType(allowed))",
        "state = replace(state, contract=event.contract, held=MappingProxyType(allowed), verdicts={})",
    ),
    Mutation(
        "go on after a no",
        "core/agent.py",
        """    state = replace(state, held=without(state.held, *gone))
    effects = (Withdraw""",
        """    state = replace(state, held=state.held)
    effects = (Withdraw""",
    ),
    Mutation(
        "say a no and do not tell it",
        "core/agent.py",
        "effects = (Withdraw(run, verdict.reason),) if verdict.word is Word.WITHDRAWN else ()",
        "effects: tuple[AgentEffect, ...] = ()",
        "tests/scenarios/test_scenarios.py::test_scenario[withdrawal_mid_round]",
    ),
    Mutation(
        "stay away after a yes",
        "core/agent.py",
        "        if withdrawn:\n",
        "        if withdrawn and not verdict:\n",
        "tests/core/test_core_agent_consent.py::test_a_yes_after_a_withdrawal_begins_anew",
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
