"""`fedtrain ledger`: what a data set has spent, to the accountants' digits, and the commands around it."""

from __future__ import annotations

import io
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from fedtrain.cli import ledger as commands, ledger_plot
from fedtrain.core.agent_events import ChargeMade
from fedtrain.core.charges import Charge, Mechanism
from fedtrain.core.driver import entry_of
from fedtrain.methods import accounting
from fedtrain.methods.accounting import Bound, Composition, epsilon_rdp
from fedtrain.storage.journal import Journal
from fedtrain.storage.ledger import Ledger

PEER = """\
site: jsc
coordinator: hub.example.org:7443
datasets:
  corpus:
    path: texts/*.txt
    privacy: {unit: record, epsilon_max: 8.0, delta: 1.0e-5}
  patients:
    path: notes/*.txt
    privacy: {unit: group, epsilon_max: 3.0, delta: 1.0e-6}
  free:
    path: open/*.txt
"""
STEPS = Mechanism("poisson-gaussian", "record", 1.0, 1.1, 0.01, 20)
UPDATE = Mechanism("gaussian", "site", 1.0, 4.0)


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processes: the tight bound is a tenth below the other one."""

    def bound(composition: Composition, delta: float) -> Bound:
        epsilon = epsilon_rdp(composition, delta)
        return Bound(0.9 * epsilon, "pld")

    monkeypatch.setattr(accounting, "epsilon_pld", bound)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's folder with a ledger: 50 rounds on `corpus`, one of them twice, and 5 updates of `free`."""
    (tmp_path / "peer.yaml").write_text(PEER)
    (tmp_path / "state").mkdir()
    with Ledger(tmp_path / "state" / "ledger.sqlite", clock=lambda: 1_780_000_000_000) as ledger:
        for index in range(49):
            ledger.charge([Charge(f"lm.{index}.1.jsc", 1, "lm", "north", "corpus", STEPS)])
        ledger.charge([Charge("lm.48.1.jsc", 2, "lm", "north", "corpus", STEPS)])
        for index in range(5):
            ledger.charge([Charge(f"wide.{index}.1.jsc", 1, "wide", "south", "free", UPDATE)])
    return tmp_path


def ledger_of(site: Path) -> Ledger:
    return Ledger(site / "state" / "ledger.sqlite")


def test_show_tells_the_oracle(fedtrain: Any, site: Path) -> None:
    """1000 steps of noise 1.1 at a rate of 0.01: 1.71177 and 1.51537 per record, by the real accountants."""
    found = fedtrain("ledger", "show", site, "--dataset", "corpus", "--json")
    assert found.code == 0, found.err
    told = found.document["datasets"]["corpus"]
    assert (told["unit"], told["epsilon_max"], told["delta"]) == ("record", 8.0, 1e-5)
    assert told["spent_rdp"] == pytest.approx(1.71177, abs=1e-5)
    if told["pld_by"] == "pld":  # on a machine that is this slow, the other bound is what there is
        assert told["spent_pld"] == pytest.approx(1.51537, abs=1e-3) and told["notes"] == []
    else:
        assert told["spent_pld"] == told["spent_rdp"] and "no answer within" in told["notes"][0]
    assert told["left"] == pytest.approx(8 - told["spent_pld"])
    assert (told["charges"], told["executions"], told["closed"]) == (50, 50, "")
    assert told["last_charge_ms"] == 1_780_000_000_000
    (run,) = told["runs"]
    assert (run["run"], run["consortium"], run["orders"], run["steps"]) == ("lm", "north", 49, 1000)
    assert run["spent_rdp"] == pytest.approx(told["spent_rdp"])


@pytest.mark.usefixtures("tight")
def test_show_names_every_data_set_that_has_a_budget_or_a_charge(fedtrain: Any, site: Path) -> None:
    """One without a charge has spent nothing; one without a budget has nothing left to tell."""
    datasets = fedtrain("ledger", "show", site, "--json").document["datasets"]
    assert set(datasets) == {"corpus", "patients", "free"}
    assert (datasets["patients"]["spent_rdp"], datasets["patients"]["left"]) == (0, 3.0)
    free = datasets["free"]
    assert (free["unit"], free["epsilon_max"], free["left"]) == ("site", None, None) and free["spent_rdp"] > 1


@pytest.mark.usefixtures("tight")
def test_show_in_words_names_the_unit_of_every_epsilon(fedtrain: Any, site: Path) -> None:
    """Tables with unit and delta beside each number, and the runs below."""
    out = fedtrain("ledger", "show", site).out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith("  ")}
    assert rows["corpus"][1:6] == ["record", "8", "1e-05", "1.7118", "1.5406"]
    assert "runs on corpus (per record at delta 1e-05, by RDP)" in out
    assert rows["wide"][:4] == ["wide", "south", "5", "5"]


def test_show_without_a_ledger_says_so(fedtrain: Any, site: Path) -> None:
    """Budgets are told as unspent, and that there is no file: it may have been moved away."""
    (site / "state" / "ledger.sqlite").unlink()
    found = fedtrain("ledger", "show", site, "--json")
    assert found.code == 0 and "nothing was charged yet, or the ledger was moved away" in found.err
    assert {told["spent_pld"] for told in found.document["datasets"].values()} == {0}
    assert not (site / "state" / "ledger.sqlite").exists()


def test_show_refuses_an_unknown_data_set(fedtrain: Any, site: Path) -> None:
    """With the names that there are."""
    found = fedtrain("ledger", "show", site, "--dataset", "korpus")
    assert found.code == 3 and "corpus, free, patients" in found.err


@pytest.mark.usefixtures("tight")
def test_charges_of_another_unit_leave_the_spending_unknown(fedtrain: Any, site: Path) -> None:
    """Noise for records says nothing about a person's group, so it is not told as an epsilon per group."""
    with ledger_of(site) as ledger:
        ledger.charge([Charge("x.1.1.jsc", 1, "x", "north", "patients", STEPS)])
    told = fedtrain("ledger", "show", site, "--json").document["datasets"]["patients"]
    assert (told["spent_rdp"], told["spent_pld"], told["left"]) == (None, None, 0)
    assert "say nothing about a group" in told["notes"][0]


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG\r\n"), ("svg", b"<?xml")])
def test_plot_draws_all_that_is_charged(fedtrain: Any, site: Path, suffix: str, begin: bytes) -> None:
    """A picture in the format that its name says; the vectors' one holds names, budget and both epsilons."""
    target = site / f"spending.{suffix}"
    assert fedtrain("ledger", "show", site, "--plot", target, "--json").document["plot"] == str(target)
    content = target.read_bytes()
    assert content.startswith(begin) and len(content) > 10_000
    if suffix == "svg":
        for text in (b"corpus", b"epsilon_max = 8", b"1.71 (RDP)", b"1.54 (PLD)", b"wide"):
            assert text in content


@pytest.mark.usefixtures("tight")
def test_plot_has_the_spending_after_each_charge(site: Path) -> None:
    """A line's points are the epsilons of the first charges, ascending, ending in what is spent."""
    with ledger_of(site) as ledger:
        rows = [row for row in ledger.rows() if row.charge.dataset == "corpus"]
    budget = commands.Budget("record", 8.0, 1e-5)
    one = ledger_plot.curve("corpus", rows, commands._dataset(rows, budget))
    assert one is not None and one.counts == tuple(range(51)) and one.runs == ((0, "lm"),)
    assert list(one.epsilons) == sorted(one.epsilons) and one.epsilons[0] == 0
    assert one.epsilons[7] == pytest.approx(epsilon_rdp([(STEPS, 7)], 1e-5))
    assert one.epsilons[50] == pytest.approx(1.71177, abs=1e-5)


@pytest.mark.usefixtures("tight")
def test_plot_of_nothing_is_a_picture_too(fedtrain: Any, site: Path) -> None:
    """A site that was never charged gets one that says so."""
    (site / "state" / "ledger.sqlite").unlink()
    assert fedtrain("ledger", "show", site, "--plot", site / "p.svg").code == 0
    assert b"nothing was charged yet" in (site / "p.svg").read_bytes()


def test_plot_needs_a_format_and_the_library(
    fedtrain: Any, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are told before any work, with what would be valid."""
    found = fedtrain("ledger", "show", site, "--plot", site / "p.pdf")
    assert found.code == 2 and ".png, .svg" in found.err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    found = fedtrain("ledger", "show", site, "--plot", site / "p.png")
    assert found.code == 2 and "pip install 'fedtrain[plot]'" in found.err


@pytest.mark.usefixtures("tight")
def test_names_in_a_picture_are_no_formulas(fedtrain: Any, site: Path) -> None:
    """A run's name is a coordinator's word: dollars, controls and length do not break the picture."""
    with ledger_of(site) as ledger:
        for run in ("$\\frac{", "a\x1b[2J\n", "n" * 500):
            ledger.charge([Charge("x", 1, run, "north", "free", UPDATE)])
    found = fedtrain("ledger", "show", site, "--plot", site / "p.svg")
    assert found.code == 0, found.err
    assert "\x1b" not in found.out and b"\x1b" not in (site / "p.svg").read_bytes()


def test_verify_holds_the_chain(fedtrain: Any, site: Path) -> None:
    """A sound ledger is told with its head; one altered row is exit code 5 with the row and the file."""
    document = fedtrain("ledger", "verify", site, "--json").document
    assert (document["sound"], document["sequence"], len(document["hash"])) == (True, 55, 64)
    with sqlite3.connect(site / "state" / "ledger.sqlite") as foreign:
        foreign.execute("UPDATE rows SET payload = replace(payload, '1.1', '9.1') WHERE sequence = 7")
    foreign.close()
    for command in ("verify", "show"):
        found = fedtrain("ledger", command, site)
        assert (
            found.code == 5 and "row 7 does not match its hash" in found.err and "ledger.sqlite" in found.err
        )


def test_verify_without_a_ledger(fedtrain: Any, site: Path) -> None:
    """There is nothing to verify, and none is made."""
    (site / "state" / "ledger.sqlite").unlink()
    assert fedtrain("ledger", "verify", site).code == 3
    assert not (site / "state" / "ledger.sqlite").exists()


def test_verify_finds_an_older_copy(fedtrain: Any, site: Path) -> None:
    """Sound in itself, but by its journal the agent has written a row behind it; a repair settles that."""
    ledger_of(site).close()  # writes the log back, so the file alone is a copy
    shutil.copy(site / "state" / "ledger.sqlite", site / "old")
    with ledger_of(site) as ledger:
        head = ledger.charge([Charge("lm.49.1.jsc", 1, "lm", "north", "corpus", STEPS)])
    journal = Journal.open(site / "state" / "journal.db")
    journal.append([entry_of(ChargeMade(1, "lm.49.1.jsc", 1, head.sequence, head.hash))])
    journal.close()
    document = fedtrain("ledger", "verify", site, "--json").document
    assert (document["sound"], document["agent_wrote"]) == (True, "row 56")
    shutil.copy(site / "old", site / "state" / "ledger.sqlite")
    found = fedtrain("ledger", "verify", site)
    assert found.code == 5 and "older copy" in found.err and f"row 56 ({head.hash[:12]})" in found.err
    assert fedtrain("ledger", "repair", site, "corpus", "--reason", "old copy", "--yes").code == 0
    assert fedtrain("ledger", "verify", site, "--json").document["repaired"] is True


def test_repair_asks_first(fedtrain: Any, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it does; without a yes nothing is written, with one the data set is closed."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    found = fedtrain("ledger", "repair", site, "corpus", "--reason", "the disk burnt")
    assert found.code == 3 and "closes the budget of corpus for good" in found.err
    with ledger_of(site) as ledger:
        assert ledger.head.sequence == 55
    found = fedtrain("ledger", "repair", site, "corpus", "--reason", "the disk burnt", "--yes", "--json")
    assert (found.document["closed"], found.document["sequence"]) == ("the disk burnt", 56)
    told = fedtrain("ledger", "show", site, "--dataset", "corpus", "--json").document["datasets"]["corpus"]
    assert (told["closed"], told["left"], told["spent_pld"]) == ("the disk burnt", 0, None)
    out = fedtrain("ledger", "show", site, "--dataset", "corpus", "--plot", site / "p.svg").out
    assert "the owner's reason: the disk burnt" in out
    assert b"closed by its owner" in (site / "p.svg").read_bytes()


def test_repair_knows_its_data_sets(fedtrain: Any, site: Path) -> None:
    """A name that is not in peer.yaml, or no reason, is a mistake, and nothing is written."""
    assert fedtrain("ledger", "repair", site, "korpus", "--reason", "x", "--yes").code == 2
    assert fedtrain("ledger", "repair", site, "corpus", "--reason", "  ", "--yes").code == 2
    with ledger_of(site) as ledger:
        assert ledger.head.sequence == 55


def test_the_ledger_lies_where_the_file_says(fedtrain: Any, site: Path) -> None:
    """`ledger:` of peer.yaml, resolved against its folder, as the agent does it."""
    (site / "state" / "ledger.sqlite").rename(site / "shared.sqlite")
    (site / "peer.yaml").write_text(PEER + "ledger: shared.sqlite\n")
    assert fedtrain("ledger", "verify", site, "--json").document["ledger"] == str(site / "shared.sqlite")
