from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class FetchRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("digest", "offset", "data")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    data: bytes
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("order", "digest", "size_bytes")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    order: str
    digest: str
    size_bytes: int
    def __init__(self, order: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("offset", "size_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size_bytes: int
    def __init__(self, offset: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("order", "digest", "size_bytes", "weight", "steps", "norm", "train_loss", "eval_loss", "eval_count", "seconds", "layout", "signature")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    order: str
    digest: str
    size_bytes: int
    weight: int
    steps: int
    norm: float
    train_loss: float
    eval_loss: float
    eval_count: int
    seconds: float
    layout: str
    signature: str
    def __init__(self, order: _Optional[str] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., weight: _Optional[int] = ..., steps: _Optional[int] = ..., norm: _Optional[float] = ..., train_loss: _Optional[float] = ..., eval_loss: _Optional[float] = ..., eval_count: _Optional[int] = ..., seconds: _Optional[float] = ..., layout: _Optional[str] = ..., signature: _Optional[str] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("order", "digest", "outcome", "epoch", "at_ms", "signature")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    order: str
    digest: str
    outcome: str
    epoch: int
    at_ms: int
    signature: str
    def __init__(self, order: _Optional[str] = ..., digest: _Optional[str] = ..., outcome: _Optional[str] = ..., epoch: _Optional[int] = ..., at_ms: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...
