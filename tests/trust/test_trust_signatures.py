"""Message keys and statements: what verifies, and what never does."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, strategies as st

from fedtrain.errors import BadSignature, ConfigError, LocalError, RemoteError
from fedtrain.trust import statements
from fedtrain.trust.keys import MessageKey, check_public, key_id, make_csr, make_tls_key_and_csr, verify
from fedtrain.trust.statements import Commit, Consent, Receipt

KEY, OTHER = MessageKey.generate(), MessageKey.generate()
COMMIT = Commit(run="lm", order="lm.3.0.jsc", digest="ab" * 32, size_bytes=1_000_000, weight=20_480, steps=20)
RECEIPT = Receipt(order="lm.3.0.jsc", digest="ab" * 32, outcome="stored", epoch=2, at_ms=1_800_000_000_000)
CONSENT = Consent("lm.3.0.jsc", "cd" * 32, False, ("hours: closed at night",))


@given(st.binary(max_size=200))
def test_signature_round_trip(payload: bytes) -> None:
    """What a key signed verifies under its public half, and a repeated signature is the same bytes."""
    signature = KEY.sign("commit", payload)
    verify(KEY.public, "commit", payload, signature)
    assert KEY.sign("commit", payload) == signature


@given(st.binary(min_size=1, max_size=100), st.integers(0, 99), st.integers(1, 255))
def test_any_change_is_noticed(payload: bytes, place: int, flip: int) -> None:
    """A changed payload, signature, kind or key never verifies."""
    signature = KEY.sign("commit", payload)
    changed = bytearray(payload)
    changed[place % len(payload)] ^= flip
    broken = bytearray(signature)
    broken[place % len(signature)] ^= flip
    for public, kind, data, proof in (
        (KEY.public, "commit", bytes(changed), signature),
        (KEY.public, "commit", payload, bytes(broken)),
        (KEY.public, "receipt", payload, signature),
        (OTHER.public, "commit", payload, signature),
        (KEY.public, "commit", payload, signature[:-1]),
        (KEY.public, "commit", payload, b""),
    ):
        with pytest.raises(BadSignature):
            verify(public, kind, data, proof)


def test_signed_bytes_are_the_documented_ones() -> None:
    """Another implementation can verify: Ed25519 over `fedtrain/v1/` kind, a zero byte, payload."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public))
    public.verify(KEY.sign("commit", b"x"), b"fedtrain/v1/commit\0x")


def test_kinds_cannot_run_into_payloads() -> None:
    """A kind with a separator in it is our own bug, so no kind can imitate another."""
    for kind in ("", "a\0b", "a/b", "Commit"):
        with pytest.raises(LocalError):
            KEY.sign(kind, b"")


def test_public_keys_have_one_spelling() -> None:
    """A public message key is 64 lower-case hex digits; its id depends on nothing else."""
    assert check_public(KEY.public) == KEY.public
    assert key_id(KEY.public) == KEY.key_id and len(KEY.key_id) == 16
    for wrong in ("", KEY.public.upper() + "A", KEY.public[:-1], KEY.public + "\n", "zz" * 32):
        with pytest.raises(RemoteError):
            check_public(wrong)
    # The right form but no point of the curve: nothing verifies under it, and nothing crashes.
    with pytest.raises(BadSignature):
        verify("ff" * 32, "commit", b"", bytes(64))


def test_key_survives_its_file() -> None:
    """A message key read back from its PEM signs the same; other keys are refused."""
    assert MessageKey.from_pem(KEY.pem()).public == KEY.public
    tls_key_pem, _ = make_tls_key_and_csr("jsc")
    with pytest.raises(ConfigError, match="Ed25519"):
        MessageKey.from_pem(tls_key_pem)
    with pytest.raises(ConfigError, match="P-256"):
        make_csr(KEY.pem(), "jsc")
    with pytest.raises(ConfigError, match="cannot be read"):
        MessageKey.from_pem(b"-----BEGIN PRIVATE KEY-----")


def test_secrets_do_not_show() -> None:
    """Printing a message key shows no part of its private half."""
    assert KEY.pem().split(b"\n")[1].decode() not in repr(KEY) + str(vars(KEY))


@pytest.mark.parametrize("statement", [COMMIT, RECEIPT, CONSENT])
def test_every_field_of_a_statement_is_signed(statement: statements.Statement) -> None:
    """A statement verifies, and with any one field changed it does not."""
    signature = statements.sign(statement, KEY)
    statements.verify(statement, KEY.public, signature)
    for field in dataclasses.fields(statement):  # type: ignore[arg-type]
        value = getattr(statement, field.name)
        other: object = value + 1 if isinstance(value, int) else (*value, "x")
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, str):
            other = value + "x"
        changed = dataclasses.replace(statement, **{field.name: other})  # type: ignore[type-var]
        with pytest.raises(BadSignature):
            statements.verify(changed, KEY.public, signature)


def test_equal_fields_of_another_kind_do_not_verify() -> None:
    """Statements with the same content and another kind have different signatures."""

    class Imitation(Commit):
        KIND = "imitation"

    imitation = Imitation(**dataclasses.asdict(COMMIT))
    with pytest.raises(BadSignature):
        statements.verify(imitation, KEY.public, statements.sign(COMMIT, KEY))


def test_heads_are_checked_under_known_keys_only() -> None:
    """A head's signature holds under the key that it names, if that key is trusted, and not otherwise."""
    check = statements.head_check([KEY.public])
    signature = statements.sign_head(b"head", KEY)
    assert check(b"head", signature, KEY.key_id)
    assert not check(b"other", signature, KEY.key_id)
    assert not check(b"head", statements.sign_head(b"head", OTHER), KEY.key_id)
    assert not check(b"head", statements.sign_head(b"head", OTHER), OTHER.key_id)
