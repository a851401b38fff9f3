from fedtrain.wire.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("protocol", "version", "session", "tasks", "codecs", "holding")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    protocol: _common_pb2.ProtocolVersion
    version: str
    session: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    codecs: _containers.RepeatedScalarFieldContainer[str]
    holding: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[_Union[_common_pb2.ProtocolVersion, _Mapping]] = ..., version: _Optional[str] = ..., session: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ..., codecs: _Optional[_Iterable[str]] = ..., holding: _Optional[_Iterable[str]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: _containers.RepeatedCompositeFieldContainer[_common_pb2.Progress]
    def __init__(self, progress: _Optional[_Iterable[_Union[_common_pb2.Progress, _Mapping]]] = ...) -> None: ...

class Consent(_message.Message):
    __slots__ = ("order", "accepted", "reasons", "signature")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    order: str
    accepted: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    signature: str
    def __init__(self, order: _Optional[str] = ..., accepted: bool = ..., reasons: _Optional[_Iterable[str]] = ..., signature: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("order", "reason")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    order: str
    reason: str
    def __init__(self, order: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("order", "loss", "count")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    order: str
    loss: float
    count: int
    def __init__(self, order: _Optional[str] = ..., loss: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("inquiry", "accepted", "reasons")
    INQUIRY_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    inquiry: str
    accepted: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, inquiry: _Optional[str] = ..., accepted: bool = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Agreement(_message.Message):
    __slots__ = ("order", "accepted", "reasons", "contract", "signature")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    order: str
    accepted: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    contract: str
    signature: str
    def __init__(self, order: _Optional[str] = ..., accepted: bool = ..., reasons: _Optional[_Iterable[str]] = ..., contract: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Examples(_message.Message):
    __slots__ = ("dataset", "count")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    count: int
    def __init__(self, dataset: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Declaration(_message.Message):
    __slots__ = ("contract", "examples", "signature")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    contract: str
    examples: _containers.RepeatedCompositeFieldContainer[Examples]
    signature: str
    def __init__(self, contract: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[Examples, _Mapping]]] = ..., signature: _Optional[str] = ...) -> None: ...

class Withdrawal(_message.Message):
    __slots__ = ("run", "reason", "signature")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    run: str
    reason: str
    signature: str
    def __init__(self, run: _Optional[str] = ..., reason: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Statement(_message.Message):
    __slots__ = ("topic", "order", "document", "signature")
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    topic: str
    order: str
    document: str
    signature: str
    def __init__(self, topic: _Optional[str] = ..., order: _Optional[str] = ..., document: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class FromPeer(_message.Message):
    __slots__ = ("hello", "heartbeat", "consent", "failure", "evaluation", "answer", "goodbye", "agreement", "declaration", "withdrawal", "statement")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    DECLARATION_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWAL_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    consent: Consent
    failure: Failure
    evaluation: Evaluation
    answer: Answer
    goodbye: Goodbye
    agreement: Agreement
    declaration: Declaration
    withdrawal: Withdrawal
    statement: Statement
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., consent: _Optional[_Union[Consent, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., agreement: _Optional[_Union[Agreement, _Mapping]] = ..., declaration: _Optional[_Union[Declaration, _Mapping]] = ..., withdrawal: _Optional[_Union[Withdrawal, _Mapping]] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("consortium", "protocol", "version", "at_ms", "heartbeat_ms")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    protocol: _common_pb2.ProtocolVersion
    version: str
    at_ms: int
    heartbeat_ms: int
    def __init__(self, consortium: _Optional[str] = ..., protocol: _Optional[_Union[_common_pb2.ProtocolVersion, _Mapping]] = ..., version: _Optional[str] = ..., at_ms: _Optional[int] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("order",)
    ORDER_FIELD_NUMBER: _ClassVar[int]
    order: _common_pb2.Order
    def __init__(self, order: _Optional[_Union[_common_pb2.Order, _Mapping]] = ...) -> None: ...

class Cancellation(_message.Message):
    __slots__ = ("order", "reason")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    order: str
    reason: str
    def __init__(self, order: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Inquiry(_message.Message):
    __slots__ = ("inquiry", "order")
    INQUIRY_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    inquiry: str
    order: _common_pb2.Order
    def __init__(self, inquiry: _Optional[str] = ..., order: _Optional[_Union[_common_pb2.Order, _Mapping]] = ...) -> None: ...

class Publication(_message.Message):
    __slots__ = ("run", "round", "version", "model_digest", "outcome")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    version: int
    model_digest: str
    outcome: str
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., model_digest: _Optional[str] = ..., outcome: _Optional[str] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("consortium", "sequence", "hash", "at_ms", "signature")
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    consortium: str
    sequence: int
    hash: str
    at_ms: int
    signature: str
    def __init__(self, consortium: _Optional[str] = ..., sequence: _Optional[int] = ..., hash: _Optional[str] = ..., at_ms: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...

class Superseded(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RosterEntry(_message.Message):
    __slots__ = ("site", "organisation")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ORGANISATION_FIELD_NUMBER: _ClassVar[int]
    site: str
    organisation: str
    def __init__(self, site: _Optional[str] = ..., organisation: _Optional[str] = ...) -> None: ...

class Roster(_message.Message):
    __slots__ = ("members", "at_ms", "signature")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[RosterEntry]
    at_ms: int
    signature: str
    def __init__(self, members: _Optional[_Iterable[_Union[RosterEntry, _Mapping]]] = ..., at_ms: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...

class ToPeer(_message.Message):
    __slots__ = ("epoch", "welcome", "invitation", "cancellation", "inquiry", "publication", "head", "superseded", "roster", "statement")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    CANCELLATION_FIELD_NUMBER: _ClassVar[int]
    INQUIRY_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    welcome: Welcome
    invitation: Invitation
    cancellation: Cancellation
    inquiry: Inquiry
    publication: Publication
    head: Head
    superseded: Superseded
    roster: Roster
    statement: Statement
    def __init__(self, epoch: _Optional[int] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., invitation: _Optional[_Union[Invitation, _Mapping]] = ..., cancellation: _Optional[_Union[Cancellation, _Mapping]] = ..., inquiry: _Optional[_Union[Inquiry, _Mapping]] = ..., publication: _Optional[_Union[Publication, _Mapping]] = ..., head: _Optional[_Union[Head, _Mapping]] = ..., superseded: _Optional[_Union[Superseded, _Mapping]] = ..., roster: _Optional[_Union[Roster, _Mapping]] = ..., statement: _Optional[_Union[Statement, _Mapping]] = ...) -> None: ...
