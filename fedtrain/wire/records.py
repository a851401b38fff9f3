"""Every message of the protocol: its core value, its protobuf message and the bounds of its fields.

The table below is the contract. Fields that a newer side may send are ignored, except in `closed`
records: what is signed, and requests that go on the record.
"""

from __future__ import annotations

import re
from typing import Any

from fedtrain.core import messages as core
from fedtrain.core.orders import DIGEST, NAME, ORDER_ID, ModelRef, Order, OrderKind, Progress, parse_order_id
from fedtrain.errors import BadOrder, BadUpdate
from fedtrain.wire import values
from fedtrain.wire.shapes import (
    Choice,
    Count,
    Flag,
    Many,
    Maybe,
    Pairs,
    Raw,
    Real,
    Record,
    Row,
    Text,
    Unfit,
)
from fedtrain.wire.v1 import common_pb2, enrolment_pb2, operations_pb2, session_pb2, transfer_pb2

NAME_TEXT = Text(63, NAME)
DIGEST_TEXT = Text(64, DIGEST)
ORDER_TEXT = Text(160, ORDER_ID)  # two names of 63, two numbers of 9, three dots
ORDER_OR_NONE = Text(160, re.compile(rf"(?:{ORDER_ID.pattern})?"))
WORD = Text(64, re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}"))
WORD_OR_NONE = Text(64, re.compile(r"(?:[a-z0-9][a-z0-9_.-]{0,63})?"))
IDENTIFIER = Text(128, re.compile(r"[A-Za-z0-9._-]{1,128}"))  # chosen by a program: session, inquiry
SIGNATURE = Text(256, re.compile(r"[A-Za-z0-9+/=_-]{1,256}"))
DATASET = Text(64, re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"))
KEY_HEX = Text(64, re.compile(r"[0-9a-f]{64}"))
REASON = Text(4096)
VERSION = Text(64)
DOCUMENT_JSON = Text(3 << 20)  # below the message limit of 4 MiB, with room for the fields beside it

ROUND = Count(10**9 - 1)  # an order's id holds nine digits
SEED = Count((1 << 63) - 1)
NOT_NEGATIVE = Real(0.0)

PROTOCOL = Row(common_pb2.ProtocolVersion, major=Count(1 << 16), minor=Count(1 << 16))

PROGRESS = Record(
    Progress,
    common_pb2.Progress,
    order=ORDER_TEXT,
    counter=Count(),
    steps=Count(),
    steps_total=Count(),
    loss=Maybe(Real()),
    tokens_per_s=NOT_NEGATIVE,
    phase=Text(256),
)

MODEL_REF = Record(
    ModelRef,
    common_pb2.ModelRef,
    closed=True,
    version=ROUND,
    digest=DIGEST_TEXT,
    layout_digest=DIGEST_TEXT,
    snapshot_version=ROUND,
    chain=Many(
        Row(common_pb2.ModelLink, closed=True, version=ROUND, digest=DIGEST_TEXT, size_bytes=Count()), 4096
    ),
)


class _OrderRecord(Record[Order]):
    """An order whose id says what its fields say, so that no side can act on one and log the other."""

    def read(self, value: Any, path: str) -> Order:
        order = super().read(value, path)
        if parse_order_id(order.id) != (order.run, order.round, order.attempt, order.site):
            raise Unfit(f"{path}.id is {order.id!r}, which is not what the order's other fields say")
        return order


ORDER = _OrderRecord(
    Order,
    common_pb2.Order,
    closed=True,
    fault=BadOrder,
    id=ORDER_TEXT,
    kind=Choice(
        {
            OrderKind.SEED: common_pb2.ORDER_KIND_SEED,
            OrderKind.TRAIN: common_pb2.ORDER_KIND_TRAIN,
            OrderKind.EVALUATE: common_pb2.ORDER_KIND_EVALUATE,
        }
    ),
    run=NAME_TEXT,
    round=ROUND,
    attempt=ROUND,
    site=NAME_TEXT,
    seed=SEED,
    model=Maybe(MODEL_REF),
    steps=Count(),
    evaluate=Flag(),
    parent=ORDER_OR_NONE,
    returned=Many(ORDER_TEXT, 4096),
    cohort=Many(NAME_TEXT, 4096),
    task=Text(1 << 20),
    codec=WORD_OR_NONE,
    block_elements=Count(1 << 31),
    patience_ms=Count(),
)

_REASONS = Many(REASON, 64)

STATEMENT = Record(
    core.Statement,
    session_pb2.Statement,
    closed=True,
    topic=WORD,
    order=ORDER_OR_NONE,
    document=Text(512 << 10),
    signature=SIGNATURE,
)

FROM_PEER: dict[str, Record[Any]] = {
    "hello": Record(
        core.Hello,
        session_pb2.Hello,
        protocol=PROTOCOL,
        version=VERSION,
        session=IDENTIFIER,
        tasks=Many(WORD, 256),
        codecs=Many(WORD, 256),
        holding=Many(ORDER_TEXT, 256),
    ),
    "heartbeat": Record(core.Heartbeat, session_pb2.Heartbeat, progress=Many(PROGRESS, 1024)),
    "consent": Record(
        core.Consent,
        session_pb2.Consent,
        closed=True,
        order=ORDER_TEXT,
        accepted=Flag(),
        reasons=_REASONS,
        signature=SIGNATURE,
    ),
    "failure": Record(core.Failure, session_pb2.Failure, closed=True, order=ORDER_TEXT, reason=REASON),
    "evaluation": Record(
        core.Evaluation, session_pb2.Evaluation, closed=True, order=ORDER_TEXT, loss=Real(), count=Count()
    ),
    "answer": Record(core.Answer, session_pb2.Answer, inquiry=IDENTIFIER, accepted=Flag(), reasons=_REASONS),
    "goodbye": Record(core.Goodbye, session_pb2.Goodbye, reason=REASON),
    "agreement": Record(
        core.Agreement,
        session_pb2.Agreement,
        closed=True,
        order=ORDER_TEXT,
        accepted=Flag(),
        reasons=_REASONS,
        contract=DIGEST_TEXT,
        signature=SIGNATURE,
    ),
    "declaration": Record(
        core.Declaration,
        session_pb2.Declaration,
        closed=True,
        contract=DIGEST_TEXT,
        examples=Pairs(Row(session_pb2.Examples, closed=True, dataset=DATASET, count=Count()), 1024),
        signature=SIGNATURE,
    ),
    "withdrawal": Record(
        core.Withdrawal,
        session_pb2.Withdrawal,
        closed=True,
        run=NAME_TEXT,
        reason=REASON,
        signature=SIGNATURE,
    ),
    "statement": STATEMENT,
}

TO_PEER: dict[str, Record[Any]] = {
    "welcome": Record(
        core.Welcome,
        session_pb2.Welcome,
        consortium=NAME_TEXT,
        protocol=PROTOCOL,
        version=VERSION,
        at_ms=Count(),
        heartbeat_ms=Count(),
    ),
    "invitation": Record(core.Invitation, session_pb2.Invitation, fault=BadOrder, order=ORDER),
    "cancellation": Record(core.Cancellation, session_pb2.Cancellation, order=ORDER_TEXT, reason=REASON),
    "inquiry": Record(core.Inquiry, session_pb2.Inquiry, fault=BadOrder, inquiry=IDENTIFIER, order=ORDER),
    "publication": Record(
        core.Publication,
        session_pb2.Publication,
        run=NAME_TEXT,
        round=ROUND,
        version=ROUND,
        model_digest=DIGEST_TEXT,
        outcome=REASON,
    ),
    "head": Record(
        core.Head,
        session_pb2.Head,
        closed=True,
        consortium=NAME_TEXT,
        sequence=Count(),
        hash=DIGEST_TEXT,
        at_ms=Count(),
        signature=SIGNATURE,
    ),
    "superseded": Record(core.Superseded, session_pb2.Superseded, reason=REASON),
    "roster": Record(
        core.Roster,
        session_pb2.Roster,
        closed=True,
        members=Pairs(Row(session_pb2.RosterEntry, closed=True, site=NAME_TEXT, organisation=WORD), 4096),
        at_ms=Count(),
        signature=SIGNATURE,
    ),
    "statement": STATEMENT,
}

_REST: tuple[Record[Any], ...] = (
    PROGRESS,
    ORDER,
    Record(core.Offer, transfer_pb2.Offer, order=ORDER_TEXT, digest=DIGEST_TEXT, size_bytes=Count()),
    Record(core.Missing, transfer_pb2.Missing, offset=Count(), size_bytes=Count()),
    Record(
        core.Commit,
        transfer_pb2.Commit,
        closed=True,
        fault=BadUpdate,
        order=ORDER_TEXT,
        digest=DIGEST_TEXT,
        size_bytes=Count(),
        weight=Count(),
        steps=Count(),
        norm=NOT_NEGATIVE,
        train_loss=Maybe(Real()),
        eval_loss=Maybe(Real()),
        eval_count=Count(),
        seconds=NOT_NEGATIVE,
        layout=DOCUMENT_JSON,
        signature=SIGNATURE,
    ),
    Record(
        core.Receipt,
        transfer_pb2.Receipt,
        closed=True,
        order=ORDER_TEXT,
        digest=DIGEST_TEXT,
        outcome=WORD,
        epoch=Count(),
        at_ms=Count(),
        signature=SIGNATURE,
    ),
    Record(values.FetchRequest, transfer_pb2.FetchRequest, digest=DIGEST_TEXT, offset=Count()),
    Record(
        values.SigningRequest,
        enrolment_pb2.SigningRequest,
        closed=True,
        csr_pem=Raw(16 << 10),
        message_key=KEY_HEX,
    ),
    Record(
        values.Admission,
        enrolment_pb2.Admission,
        certificate_pem=Raw(16 << 10),
        chain_pem=Raw(64 << 10),
        message_key=KEY_HEX,
        consortium=NAME_TEXT,
        intermediates_pem=Raw(64 << 10),
    ),
    Record(
        values.InviteRequest,
        operations_pb2.InviteRequest,
        closed=True,
        name=NAME_TEXT,
        role=WORD,
        valid_s=Count(10 * 366 * 86_400),
    ),
    Record(
        values.InviteOrder,
        operations_pb2.InviteOrder,
        closed=True,
        name=NAME_TEXT,
        role=WORD,
        valid_s=Count(10 * 366 * 86_400),
        organisation=WORD_OR_NONE,
        again=Flag(),
    ),
    Record(values.Verdict, operations_pb2.Verdict, closed=True, name=NAME_TEXT, reason=REASON),
    Record(values.VersionOrder, operations_pb2.VersionOrder, closed=True, run=NAME_TEXT, version=ROUND),
    Record(values.RollOverOrder, operations_pb2.RollOverOrder, closed=True, finish=Flag()),
    Record(
        values.Registration,
        operations_pb2.Registration,
        closed=True,
        certificate_pem=Raw(16 << 10),
        message_key=KEY_HEX,
        organisation=WORD_OR_NONE,
    ),
    Record(values.InviteLine, operations_pb2.InviteLine, line=Text(16 << 10)),
    Record(values.Spec, operations_pb2.Spec, closed=True, json=DOCUMENT_JSON),
    Record(values.RunName, operations_pb2.RunName, closed=True, run=NAME_TEXT),
    Record(values.MemberName, operations_pb2.MemberName, name=NAME_TEXT),
    Record(values.Everything, operations_pb2.Everything),
    Record(values.ExportRequest, operations_pb2.ExportRequest, run=NAME_TEXT, version=Maybe(ROUND)),
    Record(
        values.ExportHead,
        operations_pb2.ExportHead,
        version=ROUND,
        size_bytes=Count(),
        digest=DIGEST_TEXT,
        model_digest=DIGEST_TEXT,
    ),
    Record(values.JournalRequest, operations_pb2.JournalRequest, after=Count()),
    Record(values.HealthRequest, common_pb2.HealthRequest, service=Text(256)),
    Record(values.HealthResponse, common_pb2.HealthResponse, status=Count(3)),
)

RECORDS: dict[type[Any], Record[Any]] = {
    record.kind: record for record in (*FROM_PEER.values(), *TO_PEER.values(), *_REST)
}
