"""Which role may make which call. What is not in the table is nobody's."""

from __future__ import annotations

from fedtrain.trust.identity import Role
from fedtrain.wire.calls import CALLS

NEWCOMERS = frozenset({Role.ENROLLING})
SITES = frozenset({Role.SITE})
MEMBERS = frozenset({Role.SITE, Role.OPERATOR, Role.OBSERVER, Role.AUDITOR})
OPERATORS = frozenset({Role.OPERATOR})
READERS = frozenset({Role.OPERATOR, Role.OBSERVER})
AUDITORS = frozenset({Role.OPERATOR, Role.AUDITOR})

ALLOWED: dict[tuple[str, str], frozenset[Role]] = {
    ("Enrolment", "Enrol"): NEWCOMERS,
    ("Enrolment", "Renew"): MEMBERS,
    ("Session", "Attend"): SITES,
    ("Transfer", "Fetch"): SITES,
    ("Transfer", "Offer"): SITES,
    ("Transfer", "Send"): SITES,
    ("Transfer", "Commit"): SITES,
    ("Operations", "MakeInvite"): OPERATORS,
    ("Operations", "Invite"): OPERATORS,
    ("Operations", "Revoke"): OPERATORS,
    ("Operations", "Quarantine"): OPERATORS,
    ("Operations", "Release"): OPERATORS,
    ("Operations", "Register"): OPERATORS,
    ("Operations", "RollOver"): OPERATORS,
    ("Operations", "Start"): OPERATORS,
    ("Operations", "Check"): OPERATORS,
    ("Operations", "Pause"): OPERATORS,
    ("Operations", "Resume"): OPERATORS,
    ("Operations", "Stop"): OPERATORS,
    ("Operations", "Rollback"): OPERATORS,
    ("Operations", "Export"): OPERATORS,
    ("Operations", "Runs"): READERS,
    ("Operations", "Run"): READERS,
    ("Operations", "Rounds"): READERS,
    ("Operations", "Members"): READERS,
    ("Operations", "Member"): READERS,
    ("Operations", "Models"): READERS,
    ("Operations", "Watch"): READERS,
    ("Operations", "Journal"): AUDITORS,
    ("Operations", "Lineage"): READERS | AUDITORS,
    ("Health", "Check"): MEMBERS,
}
"""(service, method) -> roles."""


def allowed_roles(service: str, method: str) -> frozenset[Role]:
    """Roles that may make this call."""
    return ALLOWED.get((service, method), frozenset())


def table() -> list[dict[str, object]]:
    """The table for people and programs: one record per call of the protocol, a yes or no per role."""
    roles = [Role.ENROLLING, Role.SITE, Role.OPERATOR, Role.OBSERVER, Role.AUDITOR]
    return [
        {
            "call": f"{service}.{method}",
            **{role.value: role in allowed_roles(service, method) for role in roles},
        }
        for service, method in CALLS
    ]
