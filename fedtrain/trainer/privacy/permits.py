"""From an order's promises and the permit beside it to the plans of the work; or a refusal in words."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fedtrain.errors import LocalError, RefusedError
from fedtrain.storage.mailbox import Claim, MaskTerms, Order, SiteTerms, permit_fault, read_asked
from fedtrain.trainer.privacy.plan import RecordPlan


@dataclass(frozen=True)
class Promise:
    """What an order has to keep.

    Attributes:
        record: noise in every step; site: clip and noise of the update; masked: the sum is masked.
        sites: how many share the order.
        digest: of the promises about noise, "" where there are none. State of orders with another one
            was not made under this promise.
    """

    record: RecordPlan | None = None
    site: SiteTerms | None = None
    masked: MaskTerms | None = None
    sites: int = 1
    digest: str = ""


def promise_of(claim: Claim) -> Promise:
    """What the claimed order promises; `RefusedError` unless the agent's permit says the same."""
    order, permit = claim.order, claim.permit
    fault = permit_fault(permit, order)
    if fault:
        raise RefusedError(f"{order.id} is not worked on: {fault}")
    asked = read_asked(order.task)
    record = None
    if asked.record is not None:
        if permit is None or permit.record is None:
            raise LocalError("a permit without a record-level mechanism was taken for one that has it")
        found = permit.record
        record = RecordPlan(
            clip=found.clip,
            noise_multiplier=found.noise_multiplier,
            sampling_rate=found.sampling_rate,
            unit=found.unit,
            mode=asked.record.mode,
            units=permit.units,
        )
    digest = _digest(order) if asked.record is not None or asked.site is not None else ""
    return Promise(record, asked.site, asked.masked, len(order.cohort), digest)


def _digest(order: Order) -> str:
    """SHA-256 of the words about noise, but for a clip that adapts from round to round."""
    privacy = json.loads(order.task)["terms"]["privacy"]
    if "adaptive" in privacy.get("site", {}):
        privacy["site"].pop("clip")
    return hashlib.sha256(json.dumps(privacy, sort_keys=True).encode()).hexdigest()
