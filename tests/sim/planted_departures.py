"""Faults to be planted where a site leaves, a run goes back, or a site's people speak."""

from __future__ import annotations

from planted_faults import Mutation

LEAVING = (
    Mutation(
        "count a late update of a site that has left",
        "core/removal.py",
        "late=tuple(update for update in run.late if update.site != site),",
        "late=run.late,",
        "tests/core/test_core_removal.py::test_a_late_update_is_forgotten",
    ),
    Mutation(
        "sum on with a site that has left",
        "core/removal.py",
        "if run.phase not in (Phase.UNMASKING, Phase.AGGREGATING) or not gone & set(opened.counted):",
        "if run.phase not in (Phase.UNMASKING, Phase.AGGREGATING) or opened.counted:",
        seed=28,
    ),
    Mutation(
        "let what has left come back in a residual",
        "core/removal.py",
        "        returned=without(run.returned, site),\n",
        "",
        "tests/core/test_core_removal.py::test_nothing_comes_back_inside_a_later_update",
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
        seed=3,
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
        seed=8,
    ),
    Mutation(
        "forgive every strike",
        "core/conduct.py",
        "strikes = state.strikes.get(site, 0) + 1",
        "strikes = 1",
        seed=19,
    ),
    Mutation(
        "remember every strike",
        "core/conduct.py",
        """    if isinstance(event, ev.UpdateStored):
        return replace(state, strikes=without(state.strikes, _site(event.order))), ()
""",
        "",
        seed=10,
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
    Mutation(
        "go back and keep the parents",
        "core/rollback.py",
        "        parents={},\n",
        "",
        seed=9,
    ),
    Mutation(
        "go back and count what was late",
        "core/rollback.py",
        "        late=(),\n",
        "",
        "tests/core/test_core_rollback.py::test_late_updates_are_over",
    ),
    Mutation(
        "go back and make no more rounds",
        "core/rollback.py",
        "rounds=run.spec.rounds + event.round - restored",
        "rounds=run.spec.rounds",
        seed=9,
    ),
    Mutation(
        "forget at a restart that the run goes back",
        "core/advance.py",
        "        return (rollback.restoration(run),)\n",
        "        return ()\n",
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
        seed=10,
    ),
    Mutation(
        "forget at a restart what was said",
        "core/agent.py",
        "state = replace(state, contract=event.contract, held=MappingProxyType(allowed))",
        "state = replace(state, contract=event.contract, held=MappingProxyType(allowed), verdicts={})",
        "tests/core/test_core_agent_consent.py::test_a_no_outlives_the_agent",
    ),
    Mutation(
        "go on after a no",
        "core/agent.py",
        """    state = replace(state, held=without(state.held, *gone))
    effects = (Withdraw""",
        """    state = replace(state, held=state.held)
    effects = (Withdraw""",
        "tests/core/test_core_agent_consent.py::test_a_no_is_told_and_ends_the_work",
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
