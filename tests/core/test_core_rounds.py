"""Transcripts of the coordinator's machine: a run from its submission to its end, and what can delay it."""

from core_script import Script

from fedtrain.core.orders import OrderKind
from fedtrain.core.rounds import Verdict, judge
from fedtrain.core.state import Phase, Standing


def test_a_whole_run() -> None:
    """Two rounds with everybody there: every event is followed by exactly these effects."""
    script = Script("ab")
    script.boot()
    script.enrol("a"), script.enrol("b")
    assert script.submit() == ["timer waiting in 3000"]
    assert script.attach("a") == ["timer waiting in 3000"]
    assert script.attach("b") == ["invite a run.0.1.a", "timer deadline.0.1 in 10000"]
    assert script.consent("a") == []
    assert script.seed() == [
        "acknowledge a run.0.1.a stored",
        "invite a run.1.1.a",
        "invite b run.1.1.b",
        "timer deadline.1.1 in 10000",
    ]
    assert script.consent("a", "b") == []
    assert script.store("b", weight=3) == ["acknowledge b run.1.1.b stored"]
    assert script.store("a") == [
        "acknowledge a run.1.1.a stored",
        "aggregate 1.1 onto 0: run.1.1.a*1 + run.1.1.b*3",
    ]
    assert script.aggregate() == [
        "publish 1",
        "collect below 1",
        "invite a run.2.1.a",
        "invite b run.2.1.b",
        "timer deadline.2.1 in 10000",
    ]
    assert script.play_round() == [
        "publish 2",
        "collect below 2",
        "invite a run.3.1.a",
        "invite b run.3.1.b",
        "timer deadline.3.1 in 10000",
    ]
    assert script.order("a").kind is OrderKind.EVALUATE
    assert script.tell_evaluation("a", 1.5) == []
    assert script.tell_evaluation("b", 1.25) == ["finish done: 2 rounds done", "collect below 2"]
    assert script.run.phase is Phase.DONE
    assert script.run.evaluations == {"a": (2, 1.5, 10), "b": (2, 1.25, 10)}
    assert script.replayed() == script.state


def test_records_of_a_whole_run() -> None:
    """Seeding, rounds and evaluation each leave one record; versions form one chain."""
    script = Script("ab", rounds=1).begin()
    script.seed()
    script.play_round()
    script.tell_evaluation("a", 1.0), script.tell_evaluation("b", 1.0)
    assert [(r.index, r.version, r.model_digest) for r in script.run.records] == [
        (0, 0, "model-0"),
        (1, 1, "model-1"),
        (2, None, ""),
    ]
    record = script.run.records[1]
    assert record.counted == ("run.1.1.a", "run.1.1.b")
    assert (record.bytes_up, record.bytes_down, record.update_norm) == (80, 24, 1.5)


def test_waits_for_absent_sites_and_starts_without_them() -> None:
    """An expected site is waited for until the patience is spent; then the others start."""
    script = Script("abc").begin(attached="ab")
    assert script.run.reason == "waiting for c"
    assert script.wait(2_999) == []
    assert script.wait(1) == ["invite a run.0.1.a", "timer deadline.0.1 in 10000"]
    assert script.run.reason == "2 of 3 sites (absent: c)"


def test_too_few_sites_wait_without_a_timer() -> None:
    """Below the minimum nothing starts, whatever the time; the next arrival starts it."""
    script = Script("abc", minimum=3).begin(attached="ab")
    assert script.wait(3_000) == []
    assert script.run.reason == "2 of 3 needed sites are here (absent: c)"
    assert script.attach("c")[0] == "invite a run.0.1.a"


def test_only_the_sites_that_the_run_names() -> None:
    """A run with a list of sites invites nobody else, and members that are no sites never."""
    script = Script("abc", sites=("b", "c"))
    script.boot()
    script.enrol("op", role="operator")
    for site in "abc":
        script.enrol(site)
        script.attach(site)
    assert script.submit() == ["invite b run.0.1.b", "timer deadline.0.1 in 10000"]
    assert script.order("b").cohort == ("b", "c")


def test_seeding_moves_on_to_another_site() -> None:
    """A site that cannot make the initial weights is followed by the next one in order."""
    script = Script("abc").begin()
    assert script.fail("a") == [
        "cancel a run.0.1.a: broken",
        "invite b run.0.2.b",
        "timer deadline.0.2 in 10000",
    ]
    assert script.fail("b")[1] == "invite c run.0.3.c"
    assert script.run.records[0].reason == (
        "abandoned: every site has answered, and no initial weights came: a failed (broken)"
    )


def test_seeding_that_outlives_its_deadline() -> None:
    """A seeding site that still works keeps its seat; its weights count whenever they come."""
    script = Script("ab").begin()
    script.consent("a")
    assert script.wait(10_000) == ["timer deadline.0.2 in 10000"]
    assert script.order("a").id == "run.0.1.a"
    assert script.seed()[0] == "acknowledge a run.0.1.a stored"
    assert script.run.phase is Phase.TRAINING


def test_weights_that_come_while_nobody_can_work() -> None:
    """Initial weights of an abandoned attempt end the seeding, even with too few sites for a round."""
    script = Script("ab").begin()
    script.lose("a"), script.lose("b")
    assert script.run.phase is Phase.WAITING
    assert script.seed(order="run.0.1.a")[0] == "acknowledge a run.0.1.a stored"
    assert script.run.model is not None and script.run.round is None
    script.attach("a")
    assert script.attach("b")[:2] == ["invite a run.1.1.a", "invite b run.1.1.b"]
    assert script.standings == "a invited, b invited"


def test_a_second_seed_changes_nothing() -> None:
    """Version 0 is made once."""
    script = Script("ab").begin()
    script.seed()
    before = script.run
    assert script.seed(order="run.0.1.a") == []
    assert script.run == before


def test_quorum_by_count_at_the_deadline() -> None:
    """At the deadline a quorum closes the round; who still works is late, with a reason."""
    script = Script("abc").begin()
    script.seed()
    script.consent("c")
    script.store("a"), script.store("b")
    assert script.run.phase is Phase.TRAINING
    assert script.wait(10_000) == ["aggregate 1.1 onto 0: run.1.1.a*1 + run.1.1.b*1"]
    assert script.run.reason == "the deadline has passed: 2 of 3 contributed"
    assert script.standings == "a stored, b stored, c late"


def test_quorum_by_share_of_the_data() -> None:
    """Two small sites meet the count and not the share: the attempt is abandoned, and says so."""
    script = Script("abc", quorum_share=0.5).begin()
    script.seed()
    script.store("a", weight=1), script.store("b", weight=1), script.store("c", weight=98)
    script.aggregate()
    script.store("a", weight=1), script.store("b", weight=1)
    assert script.wait(10_000) == ["timer deadline.2.2 in 10000"]
    assert script.run.records[-1].reason == (
        "abandoned: the deadline has passed, but contributors hold 2% of the invited data, "
        "quorum_share is 50%: c invited"
    )
    assert script.store("c", weight=98) == [
        "acknowledge c run.2.1.c stored",
        "aggregate 2.2 onto 1: run.2.1.a*1 + run.2.1.b*1 + run.2.1.c*98",
    ]


def test_an_abandoned_attempt_keeps_its_contributors() -> None:
    """Who has contributed or still works keeps seat and order; only the others are invited anew."""
    script = Script("abc", quorum=3).begin()
    script.seed()
    script.store("a")
    script.consent("b")
    script.fail("c")
    assert script.wait(10_000) == ["invite c run.1.2.c", "timer deadline.1.2 in 10000"]
    assert script.standings == "a stored, b working, c invited"
    assert script.order("a").id == "run.1.1.a"
    record = script.run.records[-1]
    assert (record.version, record.counted) == (None, ())
    assert record.reason == (
        "abandoned: the deadline has passed, but 1 of 3 contributed, quorum is 3: "
        "b working; c failed (broken)"
    )
    assert script.last_seats() == {
        "a": (Standing.STORED, ""),
        "b": (Standing.WORKING, ""),
        "c": (Standing.FAILED, "broken"),
    }
    script.store("b")
    assert script.store("c")[1] == "aggregate 1.2 onto 0: run.1.1.a*1 + run.1.1.b*1 + run.1.2.c*1"


def test_an_attempt_that_opens_complete_closes_at_once() -> None:
    """If all that is left of an abandoned attempt has contributed, nobody waits for a deadline."""
    script = Script("abc", quorum_share=0.9).begin()
    script.seed()
    script.store("a"), script.store("b")
    assert script.refuse("c") == [
        "timer deadline.1.2 in 10000",
        "aggregate 1.2 onto 0: run.1.1.a*1 + run.1.1.b*1",
    ]


def test_failing_for_ever_pauses_the_run() -> None:
    """After `attempts_max` abandoned attempts the run asks for a person, and goes on when resumed."""
    script = Script("ab", attempts_max=2).begin()
    script.seed()
    script.fail("a"), script.fail("b")
    assert script.run.paused == ""
    script.fail("a")
    assert script.fail("b") == ["cancel b run.1.2.b: broken"]
    assert script.run.paused.startswith("round 1 was abandoned 2 times, last because every site has answered")
    assert script.resume()[:2] == ["invite a run.1.3.a", "invite b run.1.3.b"]


def test_evaluation_with_the_order() -> None:
    """`evaluate_every` asks for the base version's loss before training; a loss with an update counts."""
    script = Script("ab", evaluate_every=2, rounds=3).begin()
    assert script.order("a").evaluate is False
    script.seed()
    assert script.order("a").evaluate is True
    script.store("a", eval_loss=3.0), script.store("b")
    script.aggregate()
    assert script.run.evaluations == {"a": (0, 3.0, 10)}
    assert script.order("a").evaluate is False
    script.play_round()
    assert script.order("a").evaluate is True


def test_the_last_evaluation_ends_at_its_deadline() -> None:
    """A site that never answers the last evaluation is late in its record, and the run is done."""
    script = Script("ab", rounds=1).begin()
    script.seed()
    script.play_round()
    script.tell_evaluation("a", 1.0)
    assert script.wait(10_000) == [
        "cancel b run.2.1.b: the round closed without it",
        "finish done: 1 rounds done",
        "collect below 1",
    ]
    assert script.last_seats() == {
        "a": (Standing.DONE, ""),
        "b": (Standing.LATE, "still at work when the round closed"),
    }


def test_an_evaluation_after_its_seat_was_settled() -> None:
    """A site that refused or failed the last evaluation stays so; one that was lost may still answer."""
    script = Script("abcd", rounds=1).begin()
    script.seed()
    script.play_round()
    script.refuse("a"), script.fail("b"), script.lose("c")
    for site in "abc":
        script.tell_evaluation(site, 1.0)
    assert script.standings == "a refused, b failed, c done, d invited"
    assert script.run.evaluations == {"c": (1, 1.0, 10)}
    script.tell_evaluation("c", 9.0)
    assert script.run.evaluations == {"c": (1, 1.0, 10)}
    script.tell_evaluation("d", 2.0)
    assert script.last_seats()["c"] == (Standing.DONE, "")


def test_warm_up_rounds_average() -> None:
    """The first rounds take a plain average, the others the run's outer optimiser."""
    script = Script("ab", outer="nesterov", outer_warmup_rounds=1).begin()
    script.seed()
    script.store("a"), script.store("b")
    assert script.last_aggregation().outer == "average"
    script.aggregate()
    script.store("a"), script.store("b")
    assert script.last_aggregation().outer == "nesterov"


def test_events_about_nothing() -> None:
    """Events of unknown runs, of another phase, and repeated submissions change nothing."""
    script = Script("ab").begin()
    before = script.state.runs
    assert script.fail("a", order="other.1.1.a") == []
    assert script.fail("a", order="run.9.9.a") == []
    assert script.refuse("a", order="run.9.9.a") == []
    assert script.store("a", order="run.9.9.a") == []
    assert script.submit() == []
    assert script.state.runs == before
    script.consent("a")
    assert script.consent("a") == []


def test_answers_to_orders_that_hold_no_seat() -> None:
    """Weights and losses for another order than the open one change nothing."""
    script = Script("ab", rounds=1).begin()
    assert script.seed(order="run.0.7.b") == []
    assert script.run.model is None
    script.seed()
    script.play_round()
    assert script.tell_evaluation("a", 1.0, order="run.2.7.a") == []
    assert script.run.evaluations == {}


def test_no_round_has_no_judgement() -> None:
    """A run without an open round is neither to be closed nor to be abandoned."""
    judgement = judge(Script("ab").begin(attached="").run, 5)
    assert (judgement.verdict, judgement.reason) == (Verdict.OPEN, "no round is open")
