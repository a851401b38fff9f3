"""The chaos auditor knows that an update may be taken out with its site, or stay on a path that was left."""

from __future__ import annotations

from core_script import Script

from benchmarks.chaos.auditor import Account, account_of
from fedtrain.core import canonical, events as ev


def account(script: Script) -> Account:
    """What the auditor makes of the script's journal."""
    events = tuple(canonical.decode(ev.EVENTS[row.kind], row.payload) for row in script.journal.entries)
    found = account_of(events, "run")
    assert found is not None
    return found


def test_what_is_taken_out_is_not_lost() -> None:
    """By the site's own word, by an operator, by the rule: each time exactly its uncounted update."""
    for leave in ("withdraw", "quarantine", "revoke", "reject"):
        script = Script().begin()
        script.seed()
        taken = script.order("c").id
        script.store("c")
        for _ in range(3 if leave == "reject" else 1):
            getattr(script, leave)("c", *([taken] if leave == "reject" else []))
        script.play_round("ab")
        found = account(script)
        assert found.left == {taken} and found.counted[taken] == 0


def test_a_refused_upload_takes_nothing_out() -> None:
    """One rejected update of a site says nothing about what it sent before."""
    script = Script().begin()
    script.seed()
    kept = script.order("c").id
    script.store("c")
    script.reject("c", kept)
    script.play_round("ab")
    found = account(script)
    assert found.left == frozenset() and found.counted[kept] == 1


def test_a_way_back_is_a_version_like_others() -> None:
    """Versions still follow one another, and what was stored for the abandoned round is not lost."""
    script = Script(rounds=4).begin()
    script.seed()
    script.play_round()
    left = script.order("a").id
    script.store("a")
    script.roll_back(0)
    script.restored(0)
    found = account(script)
    assert found.left == {left}
    assert [event.round for event in found.versions] == [1, 2]
    assert [record.version for record in found.published] == [0, 1, 2]
