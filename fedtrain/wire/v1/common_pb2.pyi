from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OrderKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORDER_KIND_UNSPECIFIED: _ClassVar[OrderKind]
    ORDER_KIND_SEED: _ClassVar[OrderKind]
    ORDER_KIND_TRAIN: _ClassVar[OrderKind]
    ORDER_KIND_EVALUATE: _ClassVar[OrderKind]
ORDER_KIND_UNSPECIFIED: OrderKind
ORDER_KIND_SEED: OrderKind
ORDER_KIND_TRAIN: OrderKind
ORDER_KIND_EVALUATE: OrderKind

class ProtocolVersion(_message.Message):
    __slots__ = ("major", "minor")
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    major: int
    minor: int
    def __init__(self, major: _Optional[int] = ..., minor: _Optional[int] = ...) -> None: ...

class ModelLink(_message.Message):
    __slots__ = ("version", "digest", "size_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    size_bytes: int
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("version", "digest", "layout_digest", "snapshot_version", "chain")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    layout_digest: str
    snapshot_version: int
    chain: _containers.RepeatedCompositeFieldContainer[ModelLink]
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., layout_digest: _Optional[str] = ..., snapshot_version: _Optional[int] = ..., chain: _Optional[_Iterable[_Union[ModelLink, _Mapping]]] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("id", "kind", "run", "round", "attempt", "site", "seed", "model", "steps", "evaluate", "parent", "returned", "cohort", "task", "codec", "block_elements", "patience_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: OrderKind
    run: str
    round: int
    attempt: int
    site: str
    seed: int
    model: ModelRef
    steps: int
    evaluate: bool
    parent: str
    returned: _containers.RepeatedScalarFieldContainer[str]
    cohort: _containers.RepeatedScalarFieldContainer[str]
    task: str
    codec: str
    block_elements: int
    patience_ms: int
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[OrderKind, str]] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., site: _Optional[str] = ..., seed: _Optional[int] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., steps: _Optional[int] = ..., evaluate: bool = ..., parent: _Optional[str] = ..., returned: _Optional[_Iterable[str]] = ..., cohort: _Optional[_Iterable[str]] = ..., task: _Optional[str] = ..., codec: _Optional[str] = ..., block_elements: _Optional[int] = ..., patience_ms: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("order", "counter", "steps", "steps_total", "loss", "tokens_per_s", "phase")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    order: str
    counter: int
    steps: int
    steps_total: int
    loss: float
    tokens_per_s: float
    phase: str
    def __init__(self, order: _Optional[str] = ..., counter: _Optional[int] = ..., steps: _Optional[int] = ..., steps_total: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., phase: _Optional[str] = ...) -> None: ...

class HealthRequest(_message.Message):
    __slots__ = ("service",)
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    service: str
    def __init__(self, service: _Optional[str] = ...) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: int
    def __init__(self, status: _Optional[int] = ...) -> None: ...
