"""What the demo says in the end: of text, and of records that were trained on with noise."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from fedtrain.cli.demo.report import Outcome, Traffic, document, tables, words

SPENT = {
    "site": "a",
    "unit": "record",
    "epsilon_pld": 7.5,
    "epsilon_rdp": 8.25,
    "delta": 1e-4,
    "order": "r.2.1.a",
    "mechanism": "Gaussian, Poisson sampling",
}


@pytest.fixture
def outcome() -> Outcome:
    """Two sites; the federated model is better by 0.5 on the mean."""
    return Outcome(
        run="r",
        seed=1,
        rounds=2,
        federated={"a": 0.5, "b": 0.5},
        central={"a": 0.25, "b": 0.25},
        local={"a": {"a": 0.75, "b": 1.25}, "b": {"a": 1.5, "b": 0.75}},
        traffic=Traffic(1_000_000, 2_000_000, 9_000_000),
        seconds=3.0,
        model="model.safetensors",
        model_digest="0" * 64,
        problems=(),
    )


@pytest.fixture
def private(outcome: Outcome) -> Outcome:
    """The same of records, with noise, and one site that stopped."""
    return replace(
        outcome,
        accuracy={way: {"a": 0.75, "b": 1.0} for way in ("federated", "central", "a", "b")},
        learnt_from=("records", "record"),
        privacy={"promised": {"record": {"epsilon": 8.0}}, "spent": [SPENT]},
        stopped={"b": "datasets.x.privacy.epsilon_max is 5"},
    )


def shown(outcome: Outcome) -> str:
    """The tables as text."""
    page = io.StringIO()
    Console(width=200, file=page).print(tables(outcome))
    return page.getvalue()


def test_text_is_told_in_bytes_and_without_privacy(outcome: Outcome) -> None:
    """A language model's report speaks of text, and not of noise, accuracy or budgets."""
    said = words(outcome)
    assert "by 0.50 nats per byte against a's" in said and "all text in one place is still 0.25" in said
    assert "noise" not in said
    page = shown(outcome)
    assert "nats per byte" in page and "classified" not in page and "privacy" not in page


def test_a_private_run_tells_epsilon_with_its_unit_and_who_stopped(private: Outcome) -> None:
    """The report of a private run has both accountants' numbers, unit, delta and mechanism on one line."""
    said = words(private)
    assert "nats per record" in said and "all records in one place" in said
    assert "trained with the same noise" in said
    page = shown(private)
    assert (
        "epsilon 7.500 (RDP: 8.250) per record at delta 0.0001, up to r.2.1.a; Gaussian, Poisson sampling"
        in page
    )
    assert "b stopped" in page and "epsilon_max is 5" in page
    assert "87.5%" in page  # the mean accuracy of 75 % and 100 %


def test_the_document_has_all_of_it(private: Outcome) -> None:
    """`--json` has what the tables have."""
    found: dict[str, Any] = document(private)
    assert found["accuracy"]["central"] == {"a": 0.75, "b": 1.0}
    assert found["privacy"]["spent"] == [SPENT] and found["stopped"] == dict(private.stopped)
