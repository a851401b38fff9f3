"""A renewed identity on disk: whatever a crash leaves, the folder works."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtrain.errors import ConfigError, RemoteError
from fedtrain.trust import private_files
from fedtrain.trust.authority import Authority
from fedtrain.trust.certificates import check_chain, key_digest, read_certificate
from fedtrain.trust.enrolment import enrol
from fedtrain.trust.folders import MemberKeys, begin_join, finish_join, load_member
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.invites import make_invite
from fedtrain.trust.keys import MessageKey, load_tls_key
from fedtrain.trust.renewal import Renewal, begin_renewal, finish_renewal, renewal_lock

HOUR_MS = 3600 * 1000
SITE = Identity("vineyard", Role.SITE, "jsc")


@pytest.fixture
def keys(tmp_path: Path, authority: Authority, now_ms: int) -> MemberKeys:
    invite = make_invite(authority, "jsc", Role.SITE, "c:7443", now_ms, HOUR_MS)
    application = begin_join(tmp_path, invite)
    public = application.message_key.public
    made = enrol(authority, invite.facts, Role.SITE, application.csr_pem, public, now_ms)
    return finish_join(tmp_path, invite, application, made.certificate_pem, MessageKey.generate().public)


def issued(authority: Authority, renewal: Renewal, now_ms: int) -> bytes:
    return authority.issue_leaf(renewal.csr_pem, SITE, now_ms, HOUR_MS)


def fits(keys: MemberKeys) -> bool:
    """Whether key, certificate and roots are one set."""
    check_chain(keys.certificate_pem, keys.ca_pem, keys.intermediates_pem)
    digest = key_digest(load_tls_key(keys.tls_key_pem).public_key())
    return read_certificate(keys.certificate_pem).key_digest == digest


def test_a_renewal_replaces_key_certificate_and_roots(
    tmp_path: Path, keys: MemberKeys, authority: Authority, stranger: Authority, now_ms: int
) -> None:
    """The folder holds the new set under the usual names; the message key stays."""
    renewal = begin_renewal(tmp_path, keys)
    roots = authority.certificate_pem + stranger.certificate_pem
    new = finish_renewal(tmp_path, keys, renewal, issued(authority, renewal, now_ms), roots)
    assert new.certificate_pem == load_member(tmp_path).certificate_pem and fits(new)
    assert new.tls_key_pem == renewal.tls_key_pem != keys.tls_key_pem
    assert new.ca_pem == roots and new.message_key.public == keys.message_key.public
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ca.crt",
        "coordinator.pub",
        "identity.json",
        "message.key",
        "tls.crt",
        "tls.key",
    ]


@pytest.mark.parametrize("step", ["ca.crt", "tls.crt", "rename"])
def test_a_crash_behind_any_step_leaves_a_folder_that_works(
    tmp_path: Path,
    keys: MemberKeys,
    authority: Authority,
    now_ms: int,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Old set or new set, never a mixture; the next renewal completes what is left, with the same key."""

    class Crash(BaseException):
        pass

    write, replace = private_files.write_public, Path.replace

    def crashing(path: Path, data: bytes) -> None:
        if path.name == step:
            raise Crash
        write(path, data)

    def crashing_rename(self: Path, target: Path) -> Path:
        if step == "rename" and self.name == "tls.next.key":
            raise Crash
        return replace(self, target)

    renewal = begin_renewal(tmp_path, keys)
    certificate = issued(authority, renewal, now_ms)
    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(private_files, "write_public", crashing)
        patched.setattr(Path, "replace", crashing_rename)
        finish_renewal(tmp_path, keys, renewal, certificate, authority.certificate_pem)
    left = load_member(tmp_path)
    assert fits(left)
    assert left.certificate_pem == (certificate if step == "rename" else keys.certificate_pem)
    again = begin_renewal(tmp_path, left)
    if step == "rename":
        assert again.tls_key_pem != renewal.tls_key_pem, "that one is in use already"
    else:
        assert again.tls_key_pem == renewal.tls_key_pem, "a lost reply is asked for again"
    new = finish_renewal(tmp_path, left, again, issued(authority, again, now_ms), b"")
    assert fits(new) and new.tls_key_pem == again.tls_key_pem
    assert not (tmp_path / "tls.next.key").exists()


def test_a_wrong_answer_changes_nothing(
    tmp_path: Path, keys: MemberKeys, authority: Authority, stranger: Authority, now_ms: int
) -> None:
    """Another authority, name or key than asked for is refused, and the folder stays as it was."""
    renewal = begin_renewal(tmp_path, keys)
    other = Identity("vineyard", Role.SITE, "other")
    for certificate, reason in (
        (issued(stranger, renewal, now_ms), "not issued"),
        (authority.issue_leaf(renewal.csr_pem, other, now_ms), "instead of"),
        (keys.certificate_pem, "another key"),
    ):
        with pytest.raises(RemoteError, match=reason):
            finish_renewal(tmp_path, keys, renewal, certificate, authority.certificate_pem)
    left = load_member(tmp_path)
    assert (left.tls_key_pem, left.certificate_pem, left.ca_pem) == (
        keys.tls_key_pem,
        keys.certificate_pem,
        keys.ca_pem,
    )


def test_of_two_processes_one_renews(tmp_path: Path) -> None:
    """The lock is one folder's, and free again behind its block."""
    with renewal_lock(tmp_path) as first, renewal_lock(tmp_path) as second:
        assert first and not second
    with renewal_lock(tmp_path) as third:
        assert third


def test_a_certificate_without_its_key_is_said(tmp_path: Path, keys: MemberKeys, stranger: Authority) -> None:
    """A key that fits nothing names the file and the way out."""
    (tmp_path / "tls.key").write_bytes(begin_renewal(tmp_path, keys).tls_key_pem)
    (tmp_path / "tls.next.key").unlink()
    (tmp_path / "tls.key").chmod(0o600)
    with pytest.raises(ConfigError, match=r"tls\.crt: .*join again"):
        load_member(tmp_path)
