"""The coordinator's part in privacy: accounts kept and handed back, the clip that follows, and sites that are
spent, on the real machine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core_script import Script

from fedtrain.cli.lineage import card as lineage_card
from fedtrain.core import canonical, effects as fx, events as ev
from fedtrain.core.charges import (
    POISSON_GAUSSIAN,
    Account,
    Claim,
    Mechanism,
    bit_mechanism,
    site_mechanism,
)
from fedtrain.core.disclosure import disclosure
from fedtrain.core.lineage import SignedLineage, rebuild
from fedtrain.core.masks import Signed
from fedtrain.core.orders import parse_order_id
from fedtrain.core.privacy import AdaptiveTerms, MaskTerms, PrivacyTerms, RecordTerms, SiteTerms, plain
from fedtrain.core.state import Phase, Standing
from fedtrain.core.terms import read_asked

RECORD = Mechanism(POISSON_GAUSSIAN, "record", 1.0, 1.1, 0.01, 5)
ADAPTIVE = SiteTerms(1.0, 3.0, 1e-5, 5, adaptive=AdaptiveTerms(quantile=0.5, rate=0.2))


def task(terms: PrivacyTerms) -> str:
    plain_task = {"name": "tiny", "data": "corpus", "terms": {"privacy": plain(terms)}}
    return json.dumps(plain_task, sort_keys=True, separators=(",", ":"))


def account(order: str, sequence: int, within: float | None = None, run: str = "run") -> str:
    claim = Claim("record", 1e-5, 0.9, 0.8, "pld", "", ((RECORD, sequence),))
    document = canonical.encode(Account(run, order, 1, (claim,), sequence, f"{sequence:064x}", within))
    return document.decode()


def say(script: Script, order: str, document: str, site: str = "") -> list[str]:
    told: dict[str, Any] = {"site": site or parse_order_id(order)[3], "topic": "charge", "order": order}
    return script.tell(ev.StatementHeard, document=document, signature="s", **told)


def kept(script: Script, site: str) -> Account:
    return canonical.decode(Account, script.run.charges[site].document)


def test_the_newest_account_of_each_site_is_kept() -> None:
    """By the ledger's row; one that comes late changes nothing, and the journal tells the same."""
    script = Script().begin()
    script.seed()
    order = script.order("a").id
    say(script, order, account(order, 1))
    say(script, order, account(order, 3))
    say(script, order, account(order, 2))
    other = script.order("b").id
    say(script, other, account(other, 9))
    assert (kept(script, "a").sequence, kept(script, "b").sequence) == (3, 9)
    assert script.replayed() == script.state


@pytest.mark.parametrize("document", ["", "{}", "[]", '{"run":1}', account("run.1.1.b", 1), account("x", 1)])
def test_what_is_no_account_of_this_order_is_left_alone(document: str) -> None:
    """Whatever a hostile site signs, it can only ever be its own account of this run."""
    script = Script().begin()
    script.seed()
    order = script.order("a").id
    say(script, order, document)
    say(script, order, account(order, 1, run="other"))
    say(script, order, account(order, 1), site="b")
    say(script, "gone.1.1.a", account("gone.1.1.a", 1))
    assert not script.run.charges and script.run.phase is Phase.TRAINING


def test_a_site_gets_its_newest_account_back() -> None:
    """At each attach, before any order, of all runs the one at the ledger's highest row."""
    script = Script().begin()
    script.seed()
    assert script.attach("a")[0].startswith("invite")
    order = script.order("a").id
    say(script, order, account(order, 4))
    lines = script.attach("a")
    assert lines[0] == "speak ledger to a" and lines[1].startswith("invite a")
    (spoken,) = [effect for effect in script._actor.performed if isinstance(effect, fx.Speak)]
    handed_back = canonical.decode(Signed, spoken.document)
    assert handed_back == Signed(account(order, 4), "s") and spoken.order == order


def test_the_clip_follows_the_bits_of_those_that_counted() -> None:
    """All sites within: the clip shrinks by exp(-rate * (1 - quantile)), in the next order's terms alone."""
    script = Script(task=task(PrivacyTerms(site=ADAPTIVE))).begin()
    script.seed()
    first = script.order("a").task
    assert read_asked(first).site == ADAPTIVE
    for site in "ab":
        order = script.order(site).id
        say(script, order, account(order, 1, within=1.0))
    lost = script.order("c").id
    say(script, lost, account(lost, 1, within=-1e9))
    script.fail("c")
    script.play_round("ab")
    changed = read_asked(script.order("a").task).site
    assert changed is not None and changed.clip == pytest.approx(0.904837, rel=1e-6)
    assert changed.adaptive == ADAPTIVE.adaptive and script.run.spec.task == first
    script.play_round("abc")
    assert script.run.clip == changed.clip, "bits of the round before are not counted again"
    assert script.replayed() == script.state


def test_lineage_tells_what_privacy_had_cost() -> None:
    """A version's document holds the accounts as they were when it came out, made again from the journal."""
    script = Script(task=task(PrivacyTerms(RecordTerms(8.0, 1e-5, 1.0, 10)))).begin()
    script.seed()
    for site in "abc":
        order = script.order(site).id
        say(script, order, account(order, 1))
    script.play_round()
    order = script.order("a").id
    say(script, order, account(order, 2))
    rows = [Row(number, entry) for number, entry in enumerate(script.journal.entries, 1)]
    _, version = rebuild(rows, ["run"])
    assert set(version.charges) == set("abc")
    assert canonical.decode(Account, version.charges["a"].document).sequence == 1
    card = lineage_card(SignedLineage("storm", version, "k", "s"))
    assert "| a | record | 0.8 | 0.9 | 1e-05 | Gaussian, Poisson sampling" in card
    assert "epsilons of different sites are not added up" in card and "not hidden: wall times" in card


class Row:
    """A row of a journal in memory."""

    def __init__(self, sequence: int, entry: Any) -> None:
        self.sequence, self.hash = sequence, f"{sequence:064x}"
        self.kind, self.payload, self.at_ms = entry.kind, entry.payload, entry.at_ms


def test_a_spent_site_leaves_the_run_to_the_others() -> None:
    """FAULTS 56: the site that is spent fails or refuses, and the run goes on while its quorum is met."""
    script = Script(rounds=3, quorum=2).begin()
    script.seed()
    script.tell(ev.WorkFailed, order=script.order("a").id, reason="epsilon_max is 3: 3 are spent")
    script.play_round("bc")
    assert script.last_seats()["a"] == (Standing.FAILED, "epsilon_max is 3: 3 are spent")
    assert script.run.rounds_done == 1
    if script.run.round is not None and "a" in script.run.round.seats:
        script.refuse("a")
    script.play_round("bc")
    assert script.run.rounds_done == 2


def test_a_run_whose_quorum_is_spent_waits_for_a_person() -> None:
    """Where every site is needed, the run does not go on without the one that is spent."""
    script = Script(rounds=3, quorum=3, minimum=3, attempts_max=2).begin()
    script.seed()
    for _ in range(3):
        if script.run.round is None or "a" not in script.run.round.seats:
            break
        script.store("b") if script.run.round.seats["b"].standing is not Standing.STORED else None
        script.store("c") if script.run.round.seats["c"].standing is not Standing.STORED else None
        script.refuse("a")
    assert script.run.rounds_done == 0
    assert script.run.paused or script.run.phase is Phase.WAITING


# -- the words ------------------------------------------------------------------------------------


def test_no_epsilon_without_its_unit() -> None:
    """Each line tells site, unit, mechanism, sampling, epsilon by two accountants and delta."""
    terms = PrivacyTerms(RecordTerms(8.0, 1e-5, 1.0, 10, unit="group"))
    told = disclosure(task(terms), {"a": Signed(account("run.1.1.a", 2), "s")})
    (line,) = told["spent"]
    assert (line["site"], line["unit"], line["delta"]) == ("a", "record", 1e-5)
    assert (line["epsilon_pld"], line["epsilon_rdp"], line["accountants"]) == (0.8, 0.9, "pld, rdp")
    assert "Poisson sampling (rate 0.01, 5 steps), noise 1.1 x clip 1, 2 times" in line["mechanism"]
    assert any("each group of records lies at one site only" in text for text in told["assumptions"])
    assert any("losses" in text for text in told["side_channels"])


def test_what_is_assumed_is_said() -> None:
    """Who is trusted for what depends on where the noise is made; no promise is said to be none."""
    site = disclosure(task(PrivacyTerms(site=ADAPTIVE)), {})["assumptions"]
    assert any("adds all its noise itself" in text for text in site)
    shares = SiteTerms(1.0, 3.0, 1e-5, 5, "distributed", 2)
    both = disclosure(task(PrivacyTerms(site=shares, masked=MaskTerms(0, 2))), {})["assumptions"]
    assert any("trusts the others" in text and "2 missing shares" in text for text in both)
    assert any("learns the sum only" in text for text in both)
    nothing = disclosure(task(PrivacyTerms()), {})
    assert nothing["spent"] == nothing["side_channels"] == [] and "no noise" in nothing["assumptions"][0]
    words = disclosure(
        task(PrivacyTerms(site=shares, masked=MaskTerms(0, 2))),
        {"a": Signed(_account_of(site_mechanism(shares, 5), bit_mechanism(ADAPTIVE)), "s")},
    )
    assert "discrete Gaussian in 5 shares" in words["spent"][0]["mechanism"]


def _account_of(*mechanisms: Mechanism | None) -> str:
    counted = tuple((mechanism, 1) for mechanism in mechanisms if mechanism is not None)
    claim = Claim("site", 1e-5, 0.9, 0.9, "rdp", "no answer in time", counted)
    return canonical.encode(Account("run", "run.1.1.a", 1, (claim,))).decode()
