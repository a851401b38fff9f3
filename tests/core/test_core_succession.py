"""Transcripts of take-over, fencing and damaged blobs: nothing is obeyed twice, nothing lost."""

from __future__ import annotations

from core_script import Script
from hypothesis import given, strategies as st

from fedtrain.core import events as ev
from fedtrain.core.epochs import TAKEOVER_STEP, next_epoch
from fedtrain.core.spec import LatePolicy
from fedtrain.core.state import Phase
from fedtrain.core.uploads import Admission, admit


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 62), st.integers(1, TAKEOVER_STEP // 2))
def test_an_old_coordinator_never_catches_up(epoch: int, chance: int, starts: int) -> None:
    """However often it restarts, the one that took over stays above it."""
    epoch = epoch // TAKEOVER_STEP * TAKEOVER_STEP + epoch % (TAKEOVER_STEP // 2)
    assert next_epoch(epoch) == epoch + 1
    assert next_epoch(epoch, chance) > epoch + starts


def test_a_fenced_coordinator_answers_nothing() -> None:
    """Neither an upload nor a timer changes anything; not even an ordinary start does."""
    script = Script().begin()
    script.seed()
    before = script.run
    assert script.tell(ev.Fenced, epoch=9, site="a") == ["retire behind epoch 9"]
    assert script.store("a") == [] and script.wait(60_000) == [] and script.run == before
    assert script.boot() == ["retire behind epoch 9"]
    assert script.state.fenced == 9 and script.replayed() == script.state


def test_a_claim_of_a_lower_epoch_fences_nobody() -> None:
    """A site that follows an older coordinator is behind, not ahead."""
    script = Script().begin()
    assert script.tell(ev.Fenced, epoch=1, site="a") == []
    assert script.state.fenced == 0


def test_a_deliberate_take_over_of_a_fenced_folder_goes_on() -> None:
    """A higher epoch than the one that fenced it lifts the fence."""
    script = Script().begin()
    script.tell(ev.Fenced, epoch=9, site="a")
    assert "retire" not in " ".join(script.tell(ev.Booted, epoch=10, place="elsewhere"))
    assert (script.state.fenced, script.state.epoch, script.state.place) == (0, 10, "elsewhere")


def test_a_damaged_update_is_asked_for_again() -> None:
    """The attempt is abandoned with its reason, all seats stay, and the same bytes count once."""
    script = Script("ab").begin()
    script.seed()
    script.store("a")
    script.store("b")
    assert script.run.phase is Phase.AGGREGATING
    effects = script.tell(ev.BlobDamaged, run="run", blob="blob-run.1.1.a", reason="damaged")
    assert effects == ["invite a run.1.1.a", "timer deadline.1.2 in 10000"]
    assert script.standings == "a working, b stored"
    assert script.run.records[-1].reason == "abandoned: the stored update of a is damaged"
    assert admit(script.state, "a", "run.1.1.a", "blob-run.1.1.a").admission is Admission.WELCOME
    assert script.store("a") == [
        "acknowledge a run.1.1.a stored",
        "aggregate 1.2 onto 0: run.1.1.a*1 + run.1.1.b*1",
    ]


def test_a_damaged_late_update_goes_back_to_its_site() -> None:
    """It leaves the aggregation, and the site's next order names it as returned."""
    script = Script("abc", rounds=3, late=LatePolicy.NEXT_ROUND).begin()
    script.seed()
    late = script.order("c").id
    script.store("a")
    script.store("b")
    script.wait(10_000)
    script.aggregate()
    script.store("c", order=late)
    script.store("a")
    script.store("b")
    assert late in [part.order for part in script.last_aggregation().contributions]
    effects = script.tell(ev.BlobDamaged, run="run", blob=f"blob-{late}", reason="damaged")
    assert len(effects) == 1 and effects[0].startswith("aggregate 2.1 onto 1: ") and late not in effects[0]
    script.aggregate()
    assert script.order("c").returned == (late,)


def test_a_site_hears_which_of_its_orders_are_over() -> None:
    """What no version will ask for again is called off when the site comes back."""
    script = Script("ab").begin()
    script.seed()
    first = script.order("a").id
    script.play_round()
    script.lose("a")
    effects = script.attach("a", holding=(first, "gone.1.1.a"))
    assert effects[:2] == [f"cancel a {first}: it is over", "cancel a gone.1.1.a: it is over"]
