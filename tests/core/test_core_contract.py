"""The site's contract: every clause says no by itself, and all of them are named at once."""

from dataclasses import replace

import pytest
from test_core_agent import ALLOWS, FIRST

from fedtrain.core.contract import Contract, Rights
from fedtrain.core.judgement import judge

EXECUTE = Rights(execute=("tiny",))


def test_an_allowed_order() -> None:
    """What every clause allows is accepted without reasons."""
    decision = judge(ALLOWS, FIRST)
    assert (decision.accepted, decision.reasons) == (True, ())


def test_default_deny() -> None:
    """An empty contract allows nothing, and says everything that is missing."""
    decision = judge(Contract(), FIRST)
    assert decision.accepted is False
    assert decision.reasons == (
        "contract.runs does not allow run run-1 (allowed: nothing)",
        "contract.tasks does not allow task tiny (allowed: nothing)",
        "no data set corpus here",
    )


@pytest.mark.parametrize(
    ("contract", "reason"),
    [
        (
            replace(ALLOWS, runs=("a-*", "b")),
            "contract.runs does not allow run run-1 (allowed: a-*, b)",
        ),
        (
            replace(ALLOWS, tasks=("other",), datasets={"corpus": EXECUTE}),
            "contract.tasks does not allow task tiny (allowed: other)",
        ),
        (replace(ALLOWS, cohort_min=3), "contract.cohort_min is 3, this order is shared by 2"),
        (replace(ALLOWS, datasets={}), "no data set corpus here"),
        (replace(ALLOWS, datasets={"corpus": Rights(execute=("other",))}), "no data set corpus here"),
        (
            replace(ALLOWS, datasets={"corpus": Rights(discoverable=True)}),
            "datasets.corpus.rights.execute does not list task tiny",
        ),
    ],
)
def test_each_clause(contract: Contract, reason: str) -> None:
    """One clause alone refuses. A data set that may not be discovered is denied like a missing one."""
    decision = judge(contract, FIRST)
    assert (decision.accepted, decision.reasons) == (False, (reason,))


def test_a_cohort_without_this_site() -> None:
    """A cohort that does not name the site cannot be judged, so it is refused."""
    decision = judge(ALLOWS, replace(FIRST, cohort=("b", "c")))
    assert "does not name this site" in decision.reasons[0]


@pytest.mark.parametrize("task", ["{", "[]", '"tiny"', "{}"])
def test_tasks_that_cannot_be_read(task: str) -> None:
    """A task section that is no object with a name is refused as a whole, with the place."""
    decision = judge(ALLOWS, replace(FIRST, task=task))
    assert not decision.accepted and not decision.pending
    assert [reason.split(":")[0] for reason in decision.reasons] == ["the order's task cannot be judged"]


def test_a_task_without_data() -> None:
    """A task that names no data set needs no rights to one."""
    assert judge(replace(ALLOWS, datasets={}), replace(FIRST, task='{"name":"tiny"}')).accepted
