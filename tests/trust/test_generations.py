"""Authorities on the coordinator's disk: two at a time, encrypted keys, roots that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtrain.errors import ConfigError, RefusedError
from fedtrain.trust import folders, generations
from fedtrain.trust.authority import SITE_LIFETIME_MS, Authority, create_authority
from fedtrain.trust.certificates import check_chain, read_certificate, renew_at_ms, split_certificates
from fedtrain.trust.generations import Book, Plan
from fedtrain.trust.identity import Identity, Role
from fedtrain.trust.invites import LINE_CHARACTERS_MAX, decode_invite, encode_invite, make_invite
from fedtrain.trust.keys import is_sealed, make_tls_key_and_csr, open_private, seal_private

HOUR_MS = 3600 * 1000
ADDRESS = "coordinator.example.org:7443"


@pytest.mark.parametrize("lifetime_ms", [10_000, 60_000, 72 * HOUR_MS])
def test_half_life_counts_from_the_making(authority: Authority, now_ms: int, lifetime_ms: int) -> None:
    """The allowance for slow clocks at the start of a certificate does not move its half-life."""
    _, csr_pem = make_tls_key_and_csr("jsc")
    facts = read_certificate(
        authority.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms, lifetime_ms)
    )
    assert abs(renew_at_ms(facts) - (now_ms + lifetime_ms // 2)) <= 1_000


def test_sealed_keys_open_with_their_passphrase(now_ms: int) -> None:
    """An encrypted key needs its passphrase, two of one key differ, and one in the clear stays as it is."""
    key_pem, _ = create_authority("vineyard", now_ms)
    sealed = seal_private(key_pem, b"sesame")
    assert is_sealed(sealed) and not is_sealed(key_pem) and sealed != seal_private(key_pem, b"sesame")
    assert (
        open_private(sealed, b"sesame") == key_pem == open_private(key_pem, b"") == seal_private(key_pem, b"")
    )
    for passphrase, words in ((b"", "--passphrase-file"), (b"Sesame", "does not open")):
        with pytest.raises(ConfigError, match=words):
            open_private(sealed, passphrase)
    with pytest.raises(ConfigError, match="another way"):
        open_private(sealed.split(b"\n", 1)[1], b"sesame")


def test_issuer_below_a_root(tmp_path: Path, now_ms: int) -> None:
    """What an issuer signs is good under its root only with the issuer's certificate beside it."""
    root = generations.make_offline_root(tmp_path / "ca", "vineyard", now_ms, b"sesame")
    made = generations.below(root, now_ms, issues=True)
    _, csr_pem = make_tls_key_and_csr("jsc")
    leaf = made.authority.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms)
    check_chain(leaf, root.certificate_pem, made.authority.intermediates_pem)
    with pytest.raises(Exception, match="not issued"):
        check_chain(leaf, root.certificate_pem)
    assert len(split_certificates(made.server_chain_pem)) == 2
    none = generations.below(root, now_ms, issues=False).authority
    assert not none.issues
    with pytest.raises(RefusedError, match="site sign"):
        none.issue_leaf(csr_pem, Identity("vineyard", Role.SITE, "jsc"), now_ms)
    assert generations.load_offline_root(tmp_path / "ca", b"sesame").issues
    with pytest.raises(ConfigError, match="holds an authority already"):
        generations.make_offline_root(tmp_path / "ca", "vineyard", now_ms)


def test_invites_carry_two_roots_and_an_issuer(tmp_path: Path, now_ms: int) -> None:
    """During a roll-over under an offline root the line has all that a newcomer needs, and stays a line."""
    root = generations.make_offline_root(tmp_path / "ca", "vineyard", now_ms)
    issuing = generations.below(root, now_ms, issues=True).authority
    old = create_authority("vineyard", now_ms)[1]
    roots = root.certificate_pem + old
    made = make_invite(issuing, "jsc", Role.SITE, ADDRESS, now_ms, HOUR_MS, roots)
    line = encode_invite(made)
    read = decode_invite(line, now_ms)
    assert (read.ca_pem, read.intermediates_pem) == (roots, issuing.intermediates_pem)
    assert read.chain_pem == made.certificate_pem + issuing.intermediates_pem
    assert len(line) < 4_000 < LINE_CHARACTERS_MAX


def test_folder_with_two_generations(tmp_path: Path, now_ms: int) -> None:
    """The newest issues, the oldest is presented, both roots are trusted; afterwards the old key is gone."""
    state = tmp_path / "state"
    folders.init_coordinator(state, "vineyard", ADDRESS, now_ms, Plan(site_ms=60_000, passphrase=b"sesame"))
    first = folders.load_coordinator(state, b"sesame")
    made = generations.new_generation("vineyard", now_ms)
    generations.save_generation(state, 2, made, b"sesame")
    assert folders.load_coordinator(state, b"sesame").authority.serial == first.authority.serial
    generations.write_book(state, Book(1, 2, 60_000))
    both = folders.load_coordinator(state, b"sesame")
    assert both.authority.serial == made.authority.serial != first.authority.serial
    assert both.server_certificate_pem == first.server_certificate_pem
    assert split_certificates(both.roots_pem) == [
        made.authority.certificate_pem, first.authority.certificate_pem
    ]  # fmt: skip
    generations.write_book(state, Book(2, 2, 60_000))
    generations.drop_keys(state, 2)
    last = folders.load_coordinator(state, b"sesame")
    assert last.server_certificate_pem == made.server_chain_pem
    assert not (state / "ca.key").exists() and (state / "ca.crt").exists()
    assert last.book.lifetime_ms(Role.SITE) == 60_000


def test_books_of_old_and_damaged_folders(tmp_path: Path, now_ms: int) -> None:
    """A folder of an earlier version has one generation and today's lifetimes; a damaged book is told."""
    state = tmp_path / "state"
    folders.init_coordinator(state, "vineyard", ADDRESS, now_ms)
    (state / "authority.json").unlink()
    assert folders.load_coordinator(state).book == Book(1, 1, SITE_LIFETIME_MS)
    for text in ("{", '{"newest": 0}', '{"oldest": 3, "newest": 2}'):
        (state / "authority.json").write_text(text)
        with pytest.raises(ConfigError, match=r"authority\.json: is damaged"):
            folders.load_coordinator(state)


def test_plans_that_cannot_be(tmp_path: Path, now_ms: int) -> None:
    """Without an issuer the root must lie elsewhere, and certificates live from ten seconds to a year."""
    with pytest.raises(ConfigError, match="--offline-ca"):
        folders.init_coordinator(tmp_path / "a", "vineyard", ADDRESS, now_ms, Plan(issues=False))
    for lifetime_ms in (0, 9_999, 400 * 24 * HOUR_MS):
        with pytest.raises(ConfigError, match="10s to 366d"):
            folders.init_coordinator(tmp_path / "b", "vineyard", ADDRESS, now_ms, Plan(site_ms=lifetime_ms))
    folders.init_coordinator(tmp_path / "b", "vineyard", ADDRESS, now_ms)
