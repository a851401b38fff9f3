from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class SigningRequest(_message.Message):
    __slots__ = ("csr_pem", "message_key")
    CSR_PEM_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_KEY_FIELD_NUMBER: _ClassVar[int]
    csr_pem: bytes
    message_key: str
    def __init__(self, csr_pem: _Optional[bytes] = ..., message_key: _Optional[str] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("certificate_pem", "chain_pem", "message_key", "consortium", "intermediates_pem")
    CERTIFICATE_PEM_FIELD_NUMBER: _ClassVar[int]
    CHAIN_PEM_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_KEY_FIELD_NUMBER: _ClassVar[int]
    CONSORTIUM_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATES_PEM_FIELD_NUMBER: _ClassVar[int]
    certificate_pem: bytes
    chain_pem: bytes
    message_key: str
    consortium: str
    intermediates_pem: bytes
    def __init__(self, certificate_pem: _Optional[bytes] = ..., chain_pem: _Optional[bytes] = ..., message_key: _Optional[str] = ..., consortium: _Optional[str] = ..., intermediates_pem: _Optional[bytes] = ...) -> None: ...
