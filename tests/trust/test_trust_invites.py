"""Invites, enrolment, folders: from one pasted line to a member's folder."""

from __future__ import annotations

import base64
import hashlib
import os
import ssl
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from fedtrain.errors import ConfigError, LocalError, RemoteError, StorageError
from fedtrain.trust import folders, private_files
from fedtrain.trust.authority import Authority, create_authority, server_name
from fedtrain.trust.certificates import read_certificate
from fedtrain.trust.enrolment import accept, enrol, requested_key_digest
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.invites import PREFIX, Invite, check_address, decode_invite, encode_invite, make_invite
from fedtrain.trust.keys import MessageKey, make_csr, make_tls_key_and_csr

HOUR_MS = 3600 * 1000
ADDRESS = "coordinator.example.org:7443"


@pytest.fixture(scope="module")
def invite(authority: Authority, now_ms: int) -> Invite:
    return make_invite(authority, "jsc", Role.SITE, ADDRESS, now_ms, 72 * HOUR_MS)


def test_invite_round_trip(authority: Authority, invite: Invite, now_ms: int) -> None:
    """The pasted line gives back everything, also when a terminal broke it into several lines."""
    line = encode_invite(invite)
    broken = "  " + "\n".join(line[i : i + 70] for i in range(0, len(line), 70)) + "\r\n"
    for text in (line, broken):
        read = decode_invite(text, now_ms)
        assert (read.role, read.address, read.facts) == (invite.role, invite.address, invite.facts)
        assert (read.ca_pem, read.certificate_pem) == (authority.certificate_pem, invite.certificate_pem)
        assert read.key_pem == invite.key_pem
    assert (invite.name, invite.consortium) == ("jsc", "vineyard")
    assert invite.server_name == server_name("vineyard")
    assert invite.expires_ms == (now_ms + 72 * HOUR_MS) // 1000 * 1000


@pytest.mark.parametrize("length", [1, 8, 63])
def test_invite_stays_short(length: int, now_ms: int) -> None:
    """Even with the longest names an invite has fewer than 1,600 characters, and no odd ones."""
    authority = Authority(*create_authority("a" * length, now_ms))
    line = encode_invite(make_invite(authority, "b" * length, Role.OBSERVER, ADDRESS, now_ms, HOUR_MS))
    assert len(line) < 1_600
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in line)


def test_invite_hides_its_key(invite: Invite) -> None:
    """An invite in a log line does not show its key."""
    assert "PRIVATE" not in repr(invite)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_invites_are_told(invite: Invite, now_ms: int, data: st.DataObject) -> None:
    """A truncated line, or one with a wrong character, is always noticed and never half accepted."""
    line = encode_invite(invite)
    place = data.draw(st.integers(0, 999)) * len(line) // 1000
    with pytest.raises(ConfigError):
        decode_invite(line[:place], now_ms)
    wrong = "A" if line[place] != "A" else "B"
    with pytest.raises(ConfigError):
        decode_invite(line[:place] + wrong + line[place + 1 :], now_ms)


def test_truncated_paste_says_so(invite: Invite, now_ms: int) -> None:
    """A cut line, another text and a novel each get their own sentence."""
    line = encode_invite(invite)
    for cut in (1, 2, 3, 4, 100, len(line) - len(PREFIX)):
        with pytest.raises(ConfigError, match="cut off or mistyped: paste the whole line"):
            decode_invite(line[:-cut], now_ms)
    with pytest.raises(ConfigError, match="not an invite"):
        decode_invite("hello", now_ms)
    with pytest.raises(ConfigError, match="far too long"):
        decode_invite(line * 20, now_ms)


def test_expired_invite_says_when(invite: Invite, now_ms: int) -> None:
    """An invite is good until its certificate ends, not a moment longer."""
    line = encode_invite(invite)
    decode_invite(line, invite.expires_ms - 1)
    with pytest.raises(ConfigError, match=r"expired at 20\d\d-\d\d-\d\d \d\d:\d\d UTC: ask the operator"):
        decode_invite(line, invite.expires_ms)


def _line(*fields: bytes) -> str:
    """A line with a good checksum around any fields."""
    payload = b"".join(len(part).to_bytes(2, "big") + part for part in fields)
    check = hashlib.sha256(PREFIX.encode() + payload).digest()[:4]
    return PREFIX + base64.urlsafe_b64encode(payload + check).rstrip(b"=").decode()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=7))
def test_invented_invites_are_refused(fields: list[bytes]) -> None:
    """A good checksum around nonsense is refused in words."""
    with pytest.raises(ConfigError):
        decode_invite(_line(*fields), 0)


def test_forged_invites_are_refused(
    authority: Authority, stranger: Authority, invite: Invite, now_ms: int
) -> None:
    """Fields that do not fit together are refused: a checksum keeps nobody from lying."""
    payload = base64.urlsafe_b64decode(encode_invite(invite).removeprefix(PREFIX) + "==")[:-4]
    parts = []
    while payload:
        size = int.from_bytes(payload[:2], "big")
        parts.append(payload[2 : 2 + size])
        payload = payload[2 + size :]
    role, address, ca, certificate, key = parts
    decode_invite(_line(role, address, ca, certificate, key), now_ms)
    stranger_ca = ssl.PEM_cert_to_DER_cert(stranger.certificate_pem.decode())
    _, csr_pem = make_tls_key_and_csr("jsc")
    leaf_pem = authority.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms)
    leaf = ssl.PEM_cert_to_DER_cert(leaf_pem.decode())
    for reason, line in {
        "not issued": _line(role, address, stranger_ca, certificate, key),
        "for the role site": _line(role, address, ca, leaf, key),
        "wrong size": _line(role, address, ca, certificate, key[:-1]),
        "belong together": _line(role, address, ca, certificate, bytes(31) + b"\7"),
        "not valid": _line(role, address, ca, certificate, bytes(32)),
        "nobody can be invited": _line(b"coordinator", address, ca, certificate, key),
        "not an address": _line(role, b"nowhere", ca, certificate, key),
        "instead of 5": _line(role, address, ca, certificate),
    }.items():
        with pytest.raises(ConfigError, match=reason):
            decode_invite(line, now_ms)


def test_only_members_are_invited(authority: Authority, now_ms: int) -> None:
    """Nobody can be invited as coordinator or as an invitee, or under a name that is none."""
    for name in ("", "JSC", "../jsc", "j" * 64):
        with pytest.raises(ConfigError, match="cannot name a member"):
            make_invite(authority, name, Role.SITE, ADDRESS, now_ms, HOUR_MS)
    for role in (Role.COORDINATOR, Role.ENROLLING):
        with pytest.raises(ConfigError, match="nobody can be invited"):
            make_invite(authority, "jsc", role, ADDRESS, now_ms, HOUR_MS)


def test_addresses() -> None:
    """Host names, IPv4 and bracketed IPv6 with a port are addresses; anything else is not."""
    for good in ("localhost:1", "10.0.0.1:65535", "[::1]:7443", "a-b.example.org:7443"):
        assert check_address(good) == good
    for bad in (
        "",
        "host",
        "host:",
        "host:0",
        "host:65536",
        ":7443",
        "::1:7443",
        "a b:1",
        "http://a:1",
        "a:1\n",
    ):
        with pytest.raises(ConfigError, match="HOST:PORT"):
            check_address(bad)


def test_enrolment_end_to_end(authority: Authority, invite: Invite, now_ms: int) -> None:
    """The newcomer gets a certificate for its own key under the invited name and role."""
    key_pem, csr_pem = make_tls_key_and_csr("anything")
    message_key = MessageKey.generate()
    enrolled = enrol(authority, invite.facts, invite.role, csr_pem, message_key.public, now_ms)
    jsc = Identity("vineyard", Role.SITE, "jsc")
    facts = accept(jsc, key_pem, enrolled.certificate_pem, invite.ca_pem)
    assert facts.identity == jsc
    assert facts.key_digest == enrolled.key_digest == requested_key_digest(csr_pem)
    assert requested_key_digest(make_csr(key_pem, "again")) == enrolled.key_digest
    assert enrolled.message_key == message_key.public


def test_enrolment_refuses(authority: Authority, invite: Invite, now_ms: int) -> None:
    """The invite's own key, a malformed message key, a broken request and a member's certificate."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    public = MessageKey.generate().public
    with pytest.raises(RemoteError, match="invite's own key"):
        enrol(authority, invite.facts, Role.SITE, make_csr(invite.key_pem, "jsc"), public, now_ms)
    with pytest.raises(RemoteError, match="hex digits"):
        enrol(authority, invite.facts, Role.SITE, csr_pem, "no key", now_ms)
    with pytest.raises(RemoteError):
        enrol(authority, invite.facts, Role.SITE, b"no request", public, now_ms)
    member = read_certificate(authority.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms))
    with pytest.raises(LocalError):
        enrol(authority, member, Role.SITE, csr_pem, public, now_ms)


def test_newcomer_refuses_a_wrong_answer(
    authority: Authority, stranger: Authority, invite: Invite, now_ms: int
) -> None:
    """A certificate of another authority, name, role or key is not kept."""
    key_pem, csr_pem = make_tls_key_and_csr("jsc")
    _, other_csr_pem = make_tls_key_and_csr("jsc")
    jsc = Identity("vineyard", Role.SITE, "jsc")
    for reason, pem in {
        "not issued": stranger.issue_leaf(csr_pem, jsc, now_ms),
        "instead of": authority.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "other"), now_ms),
        "operator": authority.issue_leaf(csr_pem, Identity("vineyard", Role.OPERATOR, "jsc"), now_ms),
        "another key": authority.issue_leaf(other_csr_pem, jsc, now_ms),
    }.items():
        with pytest.raises(RemoteError, match=reason):
            accept(jsc, key_pem, pem, invite.ca_pem)


def _joined(
    state: Path, coordinator: folders.CoordinatorKeys, invite: Invite, now_ms: int
) -> folders.MemberKeys:
    application = folders.begin_join(state, invite)
    enrolled = enrol(
        coordinator.authority,
        invite.facts,
        invite.role,
        application.csr_pem,
        application.message_key.public,
        now_ms,
    )
    public = coordinator.message_key.public
    return folders.finish_join(state, invite, application, enrolled.certificate_pem, public)


def test_folders_end_to_end(tmp_path: Path, now_ms: int) -> None:
    """Both folders load as they were made; keys have mode 0600, folders 0700, nothing else lies about."""
    coordinator_state, site_state = tmp_path / "c" / "state", tmp_path / "s" / "state"
    coordinator = folders.init_coordinator(coordinator_state, "vineyard", ADDRESS, now_ms)
    invite = make_invite(coordinator.authority, "jsc", Role.SITE, ADDRESS, now_ms, HOUR_MS)
    member = _joined(site_state, coordinator, invite, now_ms)
    again, reloaded = folders.load_coordinator(coordinator_state), folders.load_member(site_state)
    assert again.message_key.public == coordinator.message_key.public == reloaded.coordinator_public
    assert again.authority.certificate_pem == reloaded.ca_pem
    assert reloaded.message_key.public == member.message_key.public
    assert reloaded.membership.identity == Identity("vineyard", Role.SITE, "jsc")
    assert reloaded.membership.address == ADDRESS
    assert {p.name for p in coordinator_state.iterdir()} == {
        "identity.json", "authority.json", "ca.key", "ca.crt", "server.key", "server.crt", "message.key"
    }  # fmt: skip
    assert {p.name for p in site_state.iterdir()} == {
        "identity.json", "tls.key", "tls.crt", "ca.crt", "message.key", "coordinator.pub"
    }  # fmt: skip
    for state in (coordinator_state, site_state):
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for path in state.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == (0o600 if path.suffix == ".key" else 0o644)
    assert "PRIVATE" not in repr(reloaded) + repr(again)


def test_interrupted_join_keeps_its_keys(tmp_path: Path, invite: Invite) -> None:
    """A join that was cut off asks again with the very same keys."""
    first, second = (folders.begin_join(tmp_path / "state", invite) for _ in range(2))
    assert requested_key_digest(first.csr_pem) == requested_key_digest(second.csr_pem)
    assert first.message_key.public == second.message_key.public
    with pytest.raises(ConfigError, match="fedtrain join INVITE DIR"):
        folders.load_member(tmp_path / "state")


def test_joining_again(tmp_path: Path, now_ms: int) -> None:
    """A member may join again with a new invite and stays the same member; another name may not."""
    coordinator = folders.init_coordinator(tmp_path / "c", "vineyard", ADDRESS, now_ms)
    for_jsc, again, for_other = (
        make_invite(coordinator.authority, name, Role.SITE, ADDRESS, now_ms, HOUR_MS)
        for name in ("jsc", "jsc", "other")
    )
    before = _joined(tmp_path / "s", coordinator, for_jsc, now_ms)
    after = _joined(tmp_path / "s", coordinator, again, now_ms)
    assert before.message_key.public == after.message_key.public
    assert before.certificate_pem != after.certificate_pem
    with pytest.raises(ConfigError, match="belongs to fedtrain://vineyard/site/jsc already"):
        folders.begin_join(tmp_path / "s", for_other)


def test_wrong_answer_leaves_no_identity(
    tmp_path: Path, stranger: Authority, invite: Invite, now_ms: int
) -> None:
    """When the coordinator's answer is refused, the folder stays unjoined."""
    application = folders.begin_join(tmp_path / "s", invite)
    pem = stranger.issue_leaf(application.csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms)
    with pytest.raises(RemoteError):
        folders.finish_join(tmp_path / "s", invite, application, pem, application.message_key.public)
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"tls.key", "message.key"}


def test_init_never_replaces_an_authority(tmp_path: Path, now_ms: int) -> None:
    """A second init is refused; one that was cut off is completed with the same authority."""
    state = tmp_path / "state"
    made = folders.init_coordinator(state, "vineyard", ADDRESS, now_ms)
    with pytest.raises(ConfigError, match="holds a consortium already"):
        folders.init_coordinator(state, "vineyard", ADDRESS, now_ms)
    for name in ("identity.json", "message.key", "server.crt"):
        (state / name).unlink()
    with pytest.raises(ConfigError, match="authority of vineyard"):
        folders.init_coordinator(state, "orchard", ADDRESS, now_ms)
    completed = folders.init_coordinator(state, "vineyard", ADDRESS, now_ms)
    assert completed.authority.certificate_pem == made.authority.certificate_pem


def test_unfit_folders_are_explained(tmp_path: Path, now_ms: int) -> None:
    """Missing, damaged, readable-by-others and mistaken folders each get a sentence with the way out."""
    state = tmp_path / "state"
    with pytest.raises(ConfigError, match="coordinator init DIR"):
        folders.load_coordinator(state)
    coordinator = folders.init_coordinator(state, "vineyard", ADDRESS, now_ms)
    invite = make_invite(coordinator.authority, "jsc", Role.OPERATOR, ADDRESS, now_ms, HOUR_MS)
    _joined(tmp_path / "s", coordinator, invite, now_ms)
    with pytest.raises(ConfigError, match="coordinator's folder"):
        folders.load_member(state)
    with pytest.raises(ConfigError, match="not to a coordinator"):
        folders.load_coordinator(tmp_path / "s")
    (state / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 0640.*chmod 600"):
        folders.load_coordinator(state)
    (tmp_path / "s" / "coordinator.pub").write_text("nothing")
    with pytest.raises(ConfigError, match=r"coordinator\.pub"):
        folders.load_member(tmp_path / "s")
    for damage in (
        b"{",
        b"[]",
        b'{"consortium":"../x","name":"a","role":"site","address":"","server_name":""}',
    ):
        (tmp_path / "s" / "identity.json").write_bytes(damage)
        with pytest.raises(ConfigError, match="is damaged"):
            folders.load_member(tmp_path / "s")


def test_private_file_replaces_links_and_wide_modes(tmp_path: Path) -> None:
    """Writing a secret replaces a link instead of following it, and never leaves a wider mode."""
    target, secret = tmp_path / "elsewhere", tmp_path / "a.key"
    target.write_bytes(b"untouched")
    secret.symlink_to(target)
    private_files.write_private(secret, b"secret")
    assert target.read_bytes() == b"untouched" and not secret.is_symlink()
    secret.chmod(0o666)
    private_files.write_private(secret, b"secret 2")
    assert private_files.read_private(secret, "") == b"secret 2"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails before the rename leaves the old secret and no litter."""
    secret = tmp_path / "a.key"
    private_files.write_private(secret, b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        private_files.write_private(secret, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.key"] and secret.read_bytes() == b"old"


def test_reading_is_bounded(tmp_path: Path) -> None:
    """A file far larger than any key is refused, a folder in a key's place is explained."""
    (tmp_path / "big").write_bytes(bytes(70_000))
    with pytest.raises(ConfigError, match="65536"):
        private_files.read_public(tmp_path / "big", "")
    with pytest.raises(ConfigError, match="cannot be read"):
        private_files.read_public(tmp_path, "")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot make the folder"):
        private_files.make_private_folder(tmp_path / "file" / "state")
