"""The judgement on a call's peer, and the words for a connection that failed: on values alone."""

from __future__ import annotations

import pytest

from fedtrain.errors import RefusedError, RemoteError
from fedtrain.trust.admission import judge
from fedtrain.trust.authority import Authority
from fedtrain.trust.certificates import LeafFacts, read_certificate
from fedtrain.trust.diagnosis import explain_unreachable
from fedtrain.trust.identity import MEMBER_ROLES, Identity, Role
from fedtrain.trust.keys import make_tls_key_and_csr

HOUR_MS = 3600 * 1000
Context = dict[str, list[bytes]]


def _leaf(authority: Authority, role: Role, now_ms: int) -> bytes:
    _, csr_pem = make_tls_key_and_csr("jsc")
    return authority.issue_leaf(csr_pem, Identity("vineyard", role, "jsc"), now_ms, HOUR_MS)


def _context(pem: bytes) -> Context:
    """What grpc.aio 1.85 shows for a mutual TLS 1.3 connection, reduced to what is judged."""
    return {
        "transport_security_type": [b"ssl"],
        "security_level": [b"TSI_PRIVACY_AND_INTEGRITY"],
        "ssl_tls_version": [b"TLSv1.3"],
        "x509_pem_cert": [pem],
    }


def _judge(
    context: Context,
    now_ms: int,
    allowed: frozenset[Role] | set[Role] = MEMBER_ROLES,
    consortium: str = "vineyard",
) -> LeafFacts:
    return judge(context, call="Fetch", allowed=allowed, consortium=consortium, now_ms=now_ms)


def test_every_role_is_admitted_where_it_belongs(authority: Authority, now_ms: int) -> None:
    """A call open to one role admits that role and refuses every other, naming call and role."""
    for role in MEMBER_ROLES:
        context = _context(_leaf(authority, role, now_ms))
        assert _judge(context, now_ms, {role}).identity.role is role
        for other in set(Role) - {role}:
            with pytest.raises(
                RefusedError, match=f"Fetch is for the role {other.value}, and jsc is {role.value}"
            ):
                _judge(context, now_ms, {other})


def test_bootstrap_certificate_may_only_enrol(authority: Authority, now_ms: int) -> None:
    """The holder of an invite is admitted to Enrol and to nothing that members may do."""
    _, pem = authority.issue_bootstrap("jsc", now_ms, HOUR_MS)
    assert _judge(_context(pem), now_ms, {Role.ENROLLING}).identity.name == "jsc"
    with pytest.raises(RefusedError, match="Fetch is for the role auditor or observer or operator or site"):
        _judge(_context(pem), now_ms)


def test_expiry_is_judged_on_every_call(authority: Authority, now_ms: int) -> None:
    """The same certificate is admitted until its last millisecond, then refused with the date."""
    pem = _leaf(authority, Role.SITE, now_ms)
    facts = _judge(_context(pem), now_ms)
    assert _judge(_context(pem), facts.not_after_ms - 1) == facts
    with pytest.raises(RefusedError, match=r"expired at 20\d\d-.* UTC: .*join again"):
        _judge(_context(pem), facts.not_after_ms)
    assert _judge(_context(pem), facts.not_before_ms) == facts
    with pytest.raises(RefusedError, match="set the clocks"):
        _judge(_context(pem), facts.not_before_ms - 1)


def test_other_consortium_is_refused(authority: Authority, now_ms: int) -> None:
    """A member of one consortium is nobody in another."""
    with pytest.raises(RefusedError, match="another consortium; this is orchard"):
        _judge(_context(_leaf(authority, Role.SITE, now_ms)), now_ms, consortium="orchard")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ssl_tls_version": [b"TLSv1.2"]}, "uses TLSv1.2; TLS 1.3 is needed"),
        ({"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]}, "TLS 1.3 is needed"),
        ({"ssl_tls_version": [b"\xff\xfe"]}, "TLS 1.3 is needed"),
        ({"ssl_tls_version": []}, "does not tell the TLS version"),
        ({"security_level": [b"TSI_SECURITY_NONE"]}, "no insecure mode"),
        ({"security_level": []}, "no insecure mode"),
        ({"transport_security_type": [b"insecure"]}, "no insecure mode"),
    ],
)
def test_weak_transport_is_refused(authority: Authority, now_ms: int, change: Context, reason: str) -> None:
    """Only an encrypted connection that is known to be TLS 1.3 is good enough, whoever calls."""
    context = _context(_leaf(authority, Role.SITE, now_ms)) | change
    with pytest.raises(RefusedError, match=reason):
        _judge(context, now_ms)


def test_missing_or_strange_certificates_are_remote_faults(authority: Authority, now_ms: int) -> None:
    """No certificate, two certificates and bytes that are none each break the protocol."""
    pem = _leaf(authority, Role.SITE, now_ms)
    for certificates in ([], [pem, pem], [b"none"], [b""], [authority.certificate_pem]):
        with pytest.raises(RemoteError):
            _judge(_context(pem) | {"x509_pem_cert": certificates}, now_ms)
    with pytest.raises(RefusedError):
        _judge({}, now_ms)


@pytest.mark.parametrize(
    ("details", "meaning"),
    [
        ("ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused", "nothing listens there"),
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "another authority"),
        ("ECDSA routines:OPENSSL_internal:BAD_SIGNATURE: certificate signature failure", "another authority"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "its certificate has expired"),
        ("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "not valid yet"),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "another consortium"),
        ("Tls handshake failed: WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("HTTP proxy returned response code 403", "proxy refused"),
        ("address lookup failed for nosuch.invalid:443: Domain name not found", "cannot be resolved"),
        ("connect failed: No route to host", "no route"),
        ("last error: UNAVAILABLE: ipv4:10.0.0.1:7443: Socket closed", "TLS does not say why"),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "TLS does not say why"),
        ("Deadline Exceeded", "did not answer in time"),
        ("something\n new", "(something new)"),
        ("", "gave no reason"),
    ],
)
def test_grpc_words_become_advice(authority: Authority, now_ms: int, details: str, meaning: str) -> None:
    """Each way to fail names the address, the likely cause and what to check, in one sentence."""
    facts = read_certificate(_leaf(authority, Role.SITE, now_ms))
    sentence = explain_unreachable(facts, "c.example.org:7443", details, now_ms)
    assert meaning in sentence
    assert sentence.startswith("c.example.org:7443 ") and "\n" not in sentence and "{" not in sentence


def test_own_dates_come_first(authority: Authority, now_ms: int) -> None:
    """A certificate of our own that is out of its dates explains everything else."""
    facts = read_certificate(_leaf(authority, Role.SITE, now_ms))
    late = explain_unreachable(facts, "c:1", "Socket closed", facts.not_after_ms)
    early = explain_unreachable(facts, "c:1", "Socket closed", facts.not_before_ms - 1)
    assert "our certificate (fedtrain://vineyard/site/jsc) expired at" in late and "join again" in late
    assert "is valid from" in early and "set this machine's clock" in early
