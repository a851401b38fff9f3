"""A site remembers every masked round that it has opened: an old one is not opened for another set."""

from __future__ import annotations

from dataclasses import replace

from masked_script import ALLOWS, Consortium, Site

from fedtrain.core import agent, masks
from fedtrain.core.orders import Order, Result

NAMES = tuple("abcde")
KEYS = {name: f"key-{name}" for name in NAMES}


def an_order(index: int, attempt: int) -> Order:
    """Site a's, in this attempt at this round."""
    world = Consortium("abcde")
    world.script.aggregate()
    first = world.script.order("a")
    return replace(first, id=f"run.{index}.{attempt}.a", round=index, attempt=attempt)


def fault_of(site: Site, order: Order, survivors: tuple[str, ...]) -> str:
    """Why the site burns a session that is honest but for this set; "" if it gives its shares."""
    site.tell(agent.OrderReceived, order=order, day=0, minute=0)
    proposal = masks.propose(1, order, KEYS)
    session = masks.digest_of(masks.spelled(proposal))
    adverts = {
        name: masks.Signed(masks.spelled(masks.Advert(session, name, "11", "22", "33")), "") for name in NAMES
    }
    boxes = dict.fromkeys(NAMES[1:], "box")
    signatures = dict.fromkeys(survivors, "")
    before = {
        "proposal": proposal,
        "keys": masks.Keys(session, adverts),
        "delivery": masks.Delivery(session, NAMES, boxes),
    }
    for topic, document in before.items():
        site.tell(agent.StatementReceived, topic=topic, order=order.id, document=masks.spelled(document))
    site.tell(agent.ResultTaken, result=Result(order.id, "", "update", "d", 4, 1, 1, 1.0, 0.0))
    site.tell(agent.UpdateMasked, order=order.id, digest="e", size_bytes=4, day=0)
    behind = {
        "survivors": masks.Survivors(session, survivors),
        "unmask": masks.Unmask(session, survivors, signatures),
    }
    said: list[agent.AgentEffect] = []
    for topic, document in behind.items():
        text = masks.spelled(document)
        said += site.tell(agent.StatementReceived, topic=topic, order=order.id, document=text)
    burnt = [effect.reason for effect in said if isinstance(effect, agent.BurnMasks)]
    assert bool(burnt) != (agent.SayMasked(order.id, "opened") in said)
    return "".join(burnt)


def test_an_old_round_is_not_opened_for_another_set() -> None:
    """Round 1, round 2, then round 1 once more without e: the difference would be e's update. The very set
    of then may be had again, and the last round is remembered as before.
    """
    site = Site("a", ALLOWS)
    for index in (1, 2):
        assert not fault_of(site, an_order(index, 1), NAMES)
    reason = fault_of(site, an_order(1, 2), NAMES[:4])
    assert "the sum of round 1 was opened before; another set would tell single updates apart" in reason
    assert not fault_of(site, an_order(1, 3), NAMES)
    assert "round 2 was opened before; another set" in fault_of(site, an_order(2, 2), NAMES[:4])
    assert not fault_of(site, an_order(3, 1), NAMES[:4])
    assert "opened for a, b, c, d before; another set" in fault_of(site, an_order(3, 2), NAMES)


def test_other_work_under_an_orders_name_is_no_part_of_its_session() -> None:
    """The proposal binds the model. An order that is replaced by one with another model takes its session
    with it: the first one's proposal, said again, is held against the second, and refused.
    """
    site, order = Site("a", ALLOWS), an_order(1, 1)
    site.tell(agent.OrderReceived, order=order, day=0, minute=0)
    text = masks.spelled(masks.propose(1, order, KEYS))
    proposal = {"topic": "proposal", "order": order.id, "document": text}
    assert agent.SayMasked(order.id, "advert") in site.tell(agent.StatementReceived, **proposal)
    assert order.model is not None
    other = replace(order, model=replace(order.model, digest="0" * 64))
    site.tell(agent.OrderReceived, order=other, day=0, minute=0)
    assert order.id not in site.state.masks
    said = site.tell(agent.StatementReceived, **proposal)
    reasons = [effect.reason for effect in said if isinstance(effect, agent.BurnMasks)]
    assert reasons == ["the masked session was burnt: the proposal's model is not the order's"]
