"""What people decide in worlds, and the auditor's own account of it: worth something only if it notices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtrain.core import agent, effects as fx, events as ev
from fedtrain.core.contract import Approval, Contract, Verdict, Word
from fedtrain.core.orders import Order, OrderKind, Result
from fedtrain.core.state import RoundRecord
from fedtrain.sim.choice import Choice, planned, reduced
from fedtrain.sim.conduct import IN_A_ROW, Conduct
from fedtrain.sim.numbers import digest_of
from fedtrain.sim.permission import Permission
from fedtrain.sim.plan import draw
from fedtrain.sim.recomputation import Chain
from fedtrain.sim.violation import Violation
from fedtrain.sim.wayback import WayBack
from fedtrain.sim.world import World

PLANS = [draw(seed) for seed in range(1, 300)]
ORDER = Order("r.1.1.a", OrderKind.TRAIN, "r", 1, 1, "a", 7, None, 1, False, "", (), ("a",), "{}", "f", 4, 1)
UPDATE = Result(ORDER.id, file="update.bin", digest="d", size_bytes=4, weight=1)
SUBMIT, PREPARE = agent.Submit(ORDER, UPDATE), agent.Prepare(ORDER)


def test_people_decide_all_kinds_of_things() -> None:
    """Half of the worlds have no such people; in the others every kind of decision is drawn."""
    silent = sum(not plan.acts and not plan.ways_back for plan in PLANS)
    assert 0.4 < silent / len(PLANS) < 0.8
    acts = [found for plan in PLANS for found in plan.acts.values()]
    for field in ("revoked", "quarantined", "withdrawn", "approves_ms", "holds", "opens_ms"):
        assert any(getattr(found, field) for found in acts), field
    assert {way.versions for plan in PLANS for ways in plan.ways_back.values() for way in ways} == {
        0,
        1,
        2,
        3,
    }


def test_who_is_needed_comes_back() -> None:
    """Only spare sites stay away for good, and every run could do without those."""
    for plan in PLANS:
        gone = {
            name
            for name, acts in plan.acts.items()
            for span in (acts.revoked, acts.quarantined, acts.withdrawn)
            if span is not None and (span.end_ms is None or span.end_ms > plan.clear_ms + 60_000)
        }
        for run in plan.runs:
            assert len(plan.sites) - len(gone) >= max(run.spec.minimum, run.spec.quorum)


def test_decisions_happen_in_worlds() -> None:
    """Some dozens of worlds see every kind of decision carried out, and each keeps every invariant."""
    seeds = [plan.seed for plan in PLANS if plan.acts or plan.ways_back][:45]
    kinds = {kind for seed in seeds for kind in World(seed).run().faults}
    decided = {"member revoked", "site quarantined", "site released", "run taken back", "update released"}
    assert decided | {"owner has approved", "owner has denied", "owner has withdrawn"} <= kinds


def test_decisions_can_be_left_out() -> None:
    """Each has a key like a fault, so that a failing world can be made smaller without it."""
    plan = next(plan for plan in PLANS if plan.acts and plan.ways_back)
    keys = [key for key in planned(plan) if key not in planned(replace(plan, acts={}, ways_back={}))]
    assert len(keys) > len(plan.ways_back)
    left = reduced(plan, Choice(without=frozenset(keys)))
    assert not left.ways_back and not set(planned(left)) & set(keys)
    kept = reduced(plan, Choice(without=frozenset(keys[:1])))
    assert set(keys) - set(planned(kept)) == {keys[0]}


def permission(approval: Approval = Approval.AUTOMATIC) -> Permission:
    found = Permission("a")
    found.happened(agent.AgentBooted(1, Contract(approval=approval)))
    return found


def test_work_without_a_yes_is_noticed() -> None:
    """Under a manual contract nothing is begun before a person's yes; under an automatic one it may be."""
    permission().decided((PREPARE,))
    found = permission(Approval.MANUAL)
    with pytest.raises(Violation, match="without a yes"):
        found.decided((PREPARE,))
    found.happened(agent.RunDecided(2, "r", Verdict(Word.APPROVED, "", "ada")))
    found.decided((PREPARE,))


@pytest.mark.parametrize("effect", [PREPARE, SUBMIT])
def test_anything_after_a_no_is_noticed(effect: agent.AgentEffect) -> None:
    """Work or an upload against the people's word."""
    found = permission()
    found.happened(agent.RunDecided(2, "r", Verdict(Word.WITHDRAWN, "", "ada")))
    with pytest.raises(Violation, match="its people have said no"):
        found.decided((effect,))


def test_an_unseen_update_that_leaves_is_noticed() -> None:
    """A held one leaves only when it was released; told again, it need not be released again."""
    found = permission(Approval.HOLD)
    found.happened(agent.ResultTaken(2, UPDATE))
    with pytest.raises(Violation, match="at which nobody has looked"):
        found.decided((SUBMIT,))
    found.happened(agent.UpdateReleased(3, ORDER.id, "ada", 1))
    found.happened(agent.ResultTaken(4, UPDATE))
    found.decided((SUBMIT,))


def test_who_is_out() -> None:
    """Three in a row, an operator's word, the end of a membership; each ends as it is meant to."""
    found, enrolled = Conduct(), {"a", "b"}

    def rejected() -> str:
        return found.happened(ev.UpdateRejected(1, "r.1.1.a", "x", "NaN"), enrolled)

    assert [rejected() for _ in range(IN_A_ROW + 1)] == ["", "", "a", ""]
    found.happened(ev.MemberRevoked(1, "a", "op", "why"), enrolled)
    assert found.out == {"a": "revoked"}
    found.happened(ev.SiteReleased(1, "a", "op", ""), enrolled)
    assert found.out == {"a": "revoked"}
    found.happened(ev.MemberEnrolled(1, "a", "site", "", "", "", ""), enrolled)
    assert found.out == {} and rejected() == ""
    assert found.happened(ev.SiteQuarantined(1, "b", "op", "why"), enrolled) == "b"
    assert found.happened(ev.SiteQuarantined(1, "c", "op", "why"), enrolled) == ""


def way_back() -> tuple[WayBack, Chain, list[str]]:
    """A run with versions 0 and 1, by their digests."""
    values = [np.array(pair, np.float32) for pair in ([1, 2], [3, 4])]
    blobs = {digest_of(value.tobytes()): value.tobytes() for value in values}
    chain = Chain(draw(1).runs[0].spec, blobs)
    digests = list(blobs)
    chain.seed(digests[0])
    chain.digests.append(digests[1])
    chain._publics.append(values[1])
    return WayBack(chain), chain, digests


def record(**changes: object) -> RoundRecord:
    fields = {"index": 2, "attempt": 1, "opened_ms": 1, "closed_ms": 1, "reason": "", "seats": {}}
    return RoundRecord(**{**fields, "version": 2, "restored": 0, **changes})  # type: ignore[arg-type]


def test_a_way_back_that_nobody_takes_is_noticed() -> None:
    """What was asked for begins in the same step; what cannot be had asks for nothing."""
    found, _, _ = way_back()
    found.asked(1)
    found.asked(7)
    found.pursued()
    found.asked(0)
    with pytest.raises(Violation, match="nobody restores version 0"):
        found.pursued()
    found.begun(fx.Restore("r", 2, 1, 0))
    found.pursued()


def test_a_version_that_comes_back_otherwise_is_noticed() -> None:
    """Other bits, another number, contributions to it: each breaks an invariant, and the right one none."""
    for wrong in ({"index": 3}, {"version": 3}, {"counted": ("r.1.1.a",)}, {"restored": 1}, {}):
        found, chain, digests = way_back()
        found.asked(0)
        found.begun(fx.Restore("r", 2, 1, 0))
        made = ev.VersionRestored(1, "r", 2, digests[0 if wrong else 1], digests[0], 8)
        with pytest.raises(Violation, match=r"I[23]"):
            found.done(record(model_digest=made.model_digest, **wrong), made)
    made = ev.VersionRestored(1, "r", 2, digests[0], digests[0], 8)
    found, chain, digests = way_back()
    found.asked(0)
    assert found.done(record(model_digest=digests[0]), made) == 2
    assert chain.digests == [*digests, digests[0]]
