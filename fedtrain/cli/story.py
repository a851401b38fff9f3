"""A sentence for each kind of row in a journal, the coordinator's and a site's: what `audit show` prints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fedtrain.cli.output import utc

SENTENCES = {
    # the coordinator's
    "Booted": "the coordinator starts, in epoch {epoch}{ with fedtrain |version}{, code |code}",
    "Fenced": "{site} follows a coordinator of epoch {epoch}: this one is not obeyed any more",
    "MemberInvited": "{name} is invited as {role}{ for |organisation}, until {expires_ms}",
    "MemberEnrolled": "{name} joins as {role}{ for |organisation}, with message key {message_key}",
    "MemberRenewed": "{name} has a new certificate, of key {key_digest}",
    "MemberRevoked": "{by} ends the membership of {name}: {reason}",
    "AuthorityAdded": "{by} has certificates issued by a new authority, {subject}",
    "AuthorityRetired": "{by} drops the authority {subject}",
    "InviteMisused": "the invite of {name} is shown again, and refused: {reason}",
    "SiteAttached": "{site} is attached ({version}){, at work on |holding}",
    "SiteLost": "{site} is gone: {reason}",
    "SiteDeclared": "{site} acts under contract {contract}{ and holds |examples}",
    "SiteQuarantined": "{by} puts {site} into quarantine: {reason}",
    "SiteReleased": "{by} ends the quarantine of {site}: {reason}",
    "RunSubmitted": "{by} starts run {spec.run}, {spec.rounds} rounds of {spec.steps} steps",
    "RunPaused": "{by} pauses the run",
    "RunResumed": "{by} lets the run go on",
    "RunStopped": "{by} stops the run",
    "RunRolledBack": "{by} takes the run back to version {version}",
    "VersionRestored": "version {round} is there, with the model {model_digest} of an earlier one",
    "ConsentGiven": "{order} is within its site's contract{ |contract}",
    "ConsentRefused": "{order} is refused by its site: {reasons}",
    "ConsentWithdrawn": "{site} takes its consent to the run back: {reason}",
    "StatementHeard": "{site} says its {topic}{ for |order}, signed",
    "ModelSeeded": "the first model is here, from {order}: {model_digest}, {num_elements} values",
    "UpdateStored": "the update for {order} is here: {blob}, {size_bytes} bytes, weight {weight}",
    "EvaluationStored": "{order}: loss {loss} over {count}",
    "WorkFailed": "{order} is not done: {reason}",
    "UpdateRejected": "the update for {order} is not accepted: {reason}",
    "UploadRefused": "the upload for {order}{, offered by |site}, is refused: {reason}",
    "TimerFired": "timer {timer} has run out",
    "RoundAggregated": "round {round}, attempt {attempt}: the model is {model_digest}, norm {update_norm}",
    "BlobDamaged": "the disk has damaged blob {blob}: {reason}",
    "AggregationFailed": "round {round}, attempt {attempt} cannot be aggregated: {reason}",
    "SumRefused": "round {round}, attempt {attempt}: the sum under the masks is refused: {reason}",
    # a site's
    "AgentBooted": "the agent starts",
    "EpochSeen": "the coordinator is in epoch {epoch}",
    "OrderReceived": "order {order.id} comes: {order.kind}, {order.steps} steps, with {order.cohort}",
    "OrderCancelled": "order {order} is called off: {reason}",
    "ResultTaken": "the trainer has done {result.order}{, but failed: |result.failure}",
    "WorkAbandoned": "order {order} is given up: {reason}",
    "UploadAcknowledged": "the coordinator has the update for {order}: {outcome}",
    "AnswerDelivered": "the answer to {order} is delivered",
    "RoundPublished": "the version of round {round} is out",
    "HeadWitnessed": "the coordinator's journal stood at row {sequence}, hash {hash}",
    "RosterReceived": "the members are {members}",
    "RunDecided": "{verdict.by} has {verdict.word} run {run}{, because |verdict.reason}",
    "Reconsidered": "time has passed, orders are looked at again",
    "UpdateReleased": "{by} lets the update for {order} go",
    "UpdateWithheld": "{by} keeps the update for {order} here: {reason}",
    "ContractSigned": "contract {contract} is signed{, over |examples}",
    "DataCounted": "the trainer counts{ |examples}",
    "PrivacyReckoned": "run {run} needs a noise multiplier of {noise_multiplier} here{, for units: |units}",
    "ChargeMade": "execution {execution} of {order} is charged for, in row {sequence} of the ledger",
    "StatementReceived": "the coordinator says its {topic}{ for |order}{, not to be trusted: |fault}",
    "UpdateMasked": "the masks are on the update for {order}: {digest}, {size_bytes} bytes",
    "BytesSent": "{size_bytes} bytes left in {messages} messages ({kind}){ for |order}{, allowed by |clause}",
}
"""Kind -> sentence. `{name}` is a field, with dots into the fields of one; `{words|name}` is nothing where
the field is empty."""

_FIELD = re.compile(r"\{(?:([^{}|]*)\|)?([a-z_.]+)\}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def tell(kind: str, payload: Any) -> str:
    """The sentence for a row; the bare fields of one that fits no sentence."""
    sentence = SENTENCES.get(kind)
    if sentence is not None and isinstance(payload, Mapping):
        try:
            return _FIELD.sub(lambda match: _fill(match, payload), sentence)
        except LookupError:
            pass
    return f"{kind} {_word(payload)}"


def _fill(match: re.Match[str], payload: Mapping[str, Any]) -> str:
    words, name = match.groups()
    value: Any = payload
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise LookupError(name)
        # A field that newer versions have and the row has not is an empty one.
        value = value.get(part, "") if words is not None else value[part]
    if name.endswith("_ms") and type(value) is int:
        return utc(value)
    if words is not None:
        return words + _word(value) if value else ""
    return _word(value)


def _word(value: Any) -> str:
    match value:
        case str():
            return f"{value[:12]}..." if _DIGEST.fullmatch(value) else value
        case float():
            return f"{value:.6g}"
        case list():
            return ", ".join(map(_word, value))
        case dict():
            return ", ".join(f"{key} {_word(item)}" for key, item in value.items() if item not in ("", None))
    return "-" if value is None else str(value)


def site_of(payload: Any) -> str:
    """The site, or the member, that a row is about; "" if it is about none."""
    if not isinstance(payload, Mapping):
        return ""
    for name in ("site", "name"):
        if isinstance(payload.get(name), str):
            return str(payload[name])
    order = payload.get("order")
    if isinstance(order, Mapping):
        order = order.get("id")
    result = payload.get("result")
    if isinstance(result, Mapping):
        order = result.get("order")
    return order.rsplit(".", 1)[-1] if isinstance(order, str) else ""
