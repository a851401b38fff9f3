"""Names, certificates and the authority: what is issued, what is read, what is refused."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings, strategies as st

from fedtrain.core.orders import NAME
from fedtrain.errors import ConfigError, LocalError, RemoteError
from fedtrain.trust import authority as authorities
from fedtrain.trust.authority import Authority, create_authority
from fedtrain.trust.certificates import check_issuer, parse_certificate, read_certificate, read_request
from fedtrain.trust.identity import Identity, Role, parse_identity
from fedtrain.trust.keys import load_tls_key, make_tls_key_and_csr

NAMES = st.from_regex(NAME, fullmatch=True)
DAY_MS = 24 * 3600 * 1000
SITE = Identity("vineyard", Role.SITE, "jsc")


@given(NAMES, st.sampled_from(Role), NAMES)
def test_identity_round_trip(consortium: str, role: Role, name: str) -> None:
    """Every identity reads back from its URI."""
    identity = Identity(consortium, role, name)
    assert parse_identity(str(identity)) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "fedtrain://vineyard/site/jsc/",
        "fedtrain://vineyard/site/jsc\n",
        "fedtrain://vineyard/site/../jsc",
        "fedtrain://vineyard/owner/jsc",
        "fedtrain://vineyard/SITE/jsc",
        "fedtrain://Vineyard/site/jsc",
        "fedtrain://vineyard/site/-jsc",
        "fedtrain://vineyard//jsc",
        "spiffe://vineyard/site/jsc",
        "fedtrain://vineyard/site/" + "x" * 64,
    ],
)
def test_strange_identities_are_refused(uri: str) -> None:
    """Nothing but the exact spelling of an identity is one."""
    with pytest.raises(RemoteError):
        parse_identity(uri)


def test_identity_with_bad_name_is_our_bug() -> None:
    """Code of ours cannot make an identity that would not read back."""
    with pytest.raises(LocalError):
        Identity("vineyard", Role.SITE, "../etc")


def test_leaf_carries_the_coordinators_choice(authority: Authority, now_ms: int) -> None:
    """The name in the signing request is ignored; name, role and dates are the authority's."""
    key_pem, csr_pem = make_tls_key_and_csr("somebody-else")
    pem = authority.issue_leaf(csr_pem, SITE, now_ms, 3 * DAY_MS)
    facts = read_certificate(pem)
    assert facts.identity == SITE
    assert facts.not_before_ms == (now_ms - authorities.SKEW_MS) // 1000 * 1000
    assert facts.not_after_ms == (now_ms + 3 * DAY_MS) // 1000 * 1000
    assert parse_certificate(pem).public_key() == load_tls_key(key_pem).public_key()
    check_issuer(pem, authority.certificate_pem)


def test_two_leaves_for_one_key(authority: Authority, now_ms: int) -> None:
    """Certificates for one key have different fingerprints and serials and the same key digest."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    first, second = (read_certificate(authority.issue_leaf(csr_pem, SITE, now_ms)) for _ in range(2))
    assert first.fingerprint != second.fingerprint
    assert first.key_digest == second.key_digest


def test_usages_keep_roles_apart(authority: Authority, now_ms: int) -> None:
    """The server's certificate may only serve, a member's only call, and neither may issue."""
    _, server_pem = authority.issue_server(now_ms)
    _, csr_pem = make_tls_key_and_csr("jsc")
    leaf_pem = authority.issue_leaf(csr_pem, SITE, now_ms)
    wanted = {server_pem: ExtendedKeyUsageOID.SERVER_AUTH, leaf_pem: ExtendedKeyUsageOID.CLIENT_AUTH}
    for pem, usage in wanted.items():
        extensions = parse_certificate(pem).extensions
        assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        key_usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert key_usage.digital_signature and not key_usage.key_cert_sign
    assert read_certificate(server_pem).identity == Identity("vineyard", Role.COORDINATOR, "coordinator")
    ca_usage = parse_certificate(authority.certificate_pem).extensions.get_extension_for_class(x509.KeyUsage)
    assert ca_usage.critical and ca_usage.value.key_cert_sign and not ca_usage.value.digital_signature


def test_authority_is_small() -> None:
    """The authority's certificate stays below 512 bytes for the longest name: invites carry it."""
    _, pem = create_authority("a" * 63, 1_800_000_000_000)
    assert len(ssl.PEM_cert_to_DER_cert(pem.decode())) < 512


def test_two_authorities_have_different_subjects(authority: Authority, stranger: Authority) -> None:
    """A roll-over needs both roots side by side, told apart by name."""
    subjects = {parse_certificate(a.certificate_pem).subject.public_bytes() for a in (authority, stranger)}
    assert len(subjects) == 2


def test_leaf_never_outlives_the_authority(now_ms: int) -> None:
    """A lifetime beyond the authority's end is cut there, and after it nothing is issued."""
    old = Authority(*create_authority("vineyard", now_ms - authorities.AUTHORITY_LIFETIME_MS + DAY_MS))
    _, csr_pem = make_tls_key_and_csr("jsc")
    facts = read_certificate(old.issue_leaf(csr_pem, SITE, now_ms))
    assert facts.not_after_ms == (now_ms + DAY_MS) // 1000 * 1000
    with pytest.raises(ConfigError, match="expired"):
        old.issue_leaf(csr_pem, SITE, now_ms + DAY_MS)


def test_authority_names_only_its_own_members(authority: Authority, now_ms: int) -> None:
    """Another consortium, or a role that nobody applies for, is our own bug."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    with pytest.raises(LocalError):
        authority.issue_leaf(csr_pem, Identity("orchard", Role.SITE, "jsc"), now_ms)
    with pytest.raises(LocalError):
        authority.issue_leaf(csr_pem, Identity("vineyard", Role.COORDINATOR, "jsc"), now_ms)
    with pytest.raises(ConfigError):
        authority.issue_bootstrap("jsc", now_ms, 0)


def test_authority_refuses_a_mixed_pair(now_ms: int, authority: Authority) -> None:
    """A key and a certificate that do not belong together are refused, and so is a leaf as authority."""
    key_pem, certificate_pem = create_authority("vineyard", now_ms)
    with pytest.raises(ConfigError, match="belong together"):
        Authority(key_pem, authority.certificate_pem)
    with pytest.raises(ConfigError):
        Authority(*authority.issue_bootstrap("jsc", now_ms, DAY_MS))
    with pytest.raises(ConfigError):
        Authority(b"no key", certificate_pem)
    with pytest.raises(ConfigError):
        Authority(key_pem, b"no certificate")
    with pytest.raises(ConfigError, match="cannot name a consortium"):
        create_authority("Not A Name", now_ms)


def test_foreign_issuer_is_told(authority: Authority, stranger: Authority, now_ms: int) -> None:
    """A certificate of another authority, or one issued by a mere member, is refused."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    leaf_pem = stranger.issue_leaf(csr_pem, SITE, now_ms)
    with pytest.raises(RemoteError, match="not issued"):
        check_issuer(leaf_pem, authority.certificate_pem)
    member_key_pem, member_pem = authority.issue_bootstrap("jsc", now_ms, DAY_MS)
    forged_pem = _certificate(load_tls_key(member_key_pem), issuer=parse_certificate(member_pem).subject)
    with pytest.raises(RemoteError, match="may not issue"):
        check_issuer(forged_pem, member_pem)


def _certificate(
    signer: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name | None = None,
    public_key: object = None,
    names: list[x509.GeneralName] | None = None,
    authority: bool = False,
) -> bytes:
    """A certificate that our authority would never make."""
    now = datetime.now(UTC)
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer or name)
        .serial_number(x509.random_serial_number())
        .public_key(public_key or signer.public_key())  # type: ignore[arg-type]
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_hostile_certificates_are_refused_with_a_reason() -> None:
    """Every certificate that is not one P-256 leaf with one identity is a `RemoteError` that says why."""
    key = ec.generate_private_key(ec.SECP256R1())
    jsc, other = (x509.UniformResourceIdentifier(f"fedtrain://vineyard/site/{n}") for n in ("jsc", "other"))
    good = _certificate(key, names=[jsc])
    assert read_certificate(good).identity == SITE
    cases = {
        "no identity": _certificate(key),
        "2 identities": _certificate(key, names=[jsc, other]),
        "0 identities": _certificate(key, names=[x509.DNSName("jsc")]),
        "not an identity": _certificate(key, names=[x509.UniformResourceIdentifier("https://example.org")]),
        "an authority's": _certificate(key, names=[jsc], authority=True),
        "P-256": _certificate(key, names=[jsc], public_key=ed25519.Ed25519PrivateKey.generate().public_key()),
        "another kind": _certificate(
            key, names=[jsc], public_key=ec.generate_private_key(ec.SECP384R1()).public_key()
        ),
        "found 2": good + good,
        "found 0": b"",
        "at most": good + b" " * 20_000,
        "cannot be read": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    }
    for reason, pem in cases.items():
        with pytest.raises(RemoteError, match=reason):
            read_certificate(pem)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9_999), st.integers(1, 255))
def test_damaged_certificates_never_surprise(
    authority: Authority, now_ms: int, place: int, flip: int
) -> None:
    """A changed byte anywhere in a certificate or request gives facts or a `RemoteError`, nothing else."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    readers = {authority.issue_leaf(csr_pem, SITE, now_ms): read_certificate, csr_pem: read_request}
    for pem, read in readers.items():
        der = bytearray(_unwrap(pem))
        der[place % len(der)] ^= flip
        try:
            read(_wrap(bytes(der), pem))
        except RemoteError as error:
            assert str(error)


def _unwrap(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode().replace("CERTIFICATE REQUEST", "CERTIFICATE"))


def _wrap(der: bytes, like: bytes) -> bytes:
    text = ssl.DER_cert_to_PEM_cert(der)
    return (text.replace("CERTIFICATE", "CERTIFICATE REQUEST") if b"REQUEST" in like else text).encode()


def test_hostile_requests_are_refused() -> None:
    """A request for another kind of key, or one that its key did not sign, is refused."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    read_request(csr_pem)
    der = bytearray(_unwrap(csr_pem))
    der[-1] ^= 1
    with pytest.raises(RemoteError):
        read_request(_wrap(bytes(der), csr_pem))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for key in (
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        with pytest.raises(RemoteError, match="P-256"):
            read_request(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    with pytest.raises(RemoteError, match="found 0"):
        read_request(b"nothing")
