"""Taking masks off with shares that may be false, and what a masked upload has to look like."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fedtrain.coordinator import unmasking
from fedtrain.core import canonical, masks
from fedtrain.core.agent_state import MaskSeat
from fedtrain.core.effects import Unmasking
from fedtrain.core.masks import Advert, Boxes, Delivery, Keys, Opened, Proposal, Signed
from fedtrain.core.messages import Commit
from fedtrain.errors import BadUpdate, RemoteError
from fedtrain.methods.maskedfile import MaskedHeader, MaskedWriter, masked_size
from fedtrain.peer import mask_secrets
from fedtrain.peer.mask_secrets import NO_SHARE, Kept

WORDS = 64


@dataclass
class Session:
    """All sites' ends of one session, up to what they open."""

    given: Unmasking
    kept: dict[str, Kept]
    seats: dict[str, MaskSeat]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"site-{number:02d}" for number in range(count))


def session_of(count: int, lost: tuple[str, ...] = (), garbage_boxes_of: str = "") -> Session:
    """A whole session with real keys, shares and boxes; the `lost` have shared and sent no update."""
    sites = names(count)
    near = masks.degree(count)
    proposal = Proposal(
        run="tiny",
        round=1,
        attempt=1,
        epoch=1,
        model="a" * 64,
        layout="b" * 64,
        plan="c" * 64,
        codec="fixed12s8",
        block_elements=4096,
        ring_bits=masks.ring_bits("fixed12s8", count) or 0,
        threshold=masks.threshold(count),
        degree=near,
        shares=masks.threshold(near + 1),
        sites={site: hashlib.sha256(site.encode()).hexdigest() for site in sites},
    )
    text = masks.spelled(proposal)
    session = masks.digest_of(text)
    seats = {site: MaskSeat(session, text, members=sites, sharers=sites) for site in sites}
    kept = {site: mask_secrets.advert(seats[site], site) for site in sites}
    keys = masks.spelled(Keys(session, {site: Signed(kept[site].said["advert"], "00") for site in sites}))
    kept = {site: mask_secrets.boxes(kept[site], seats[site], site, keys) for site in sites}
    boxes = {site: dict(canonical.decode(Boxes, kept[site].said["boxes"]).boxes) for site in sites}
    if garbage_boxes_of:
        boxes[garbage_boxes_of] = dict.fromkeys(boxes[garbage_boxes_of], "AAAA")
    survivors = tuple(site for site in sites if site not in lost)
    opened = {}
    for site in survivors:
        mine = {source: sealed[site] for source, sealed in boxes.items() if site in sealed}
        document = masks.spelled(Delivery(session, sites, mine))
        kept[site] = mask_secrets.delivered(kept[site], seats[site], site, document)
        seat = replace(seats[site], survivors=survivors)
        opened[site] = canonical.decode(Opened, mask_secrets.opened(kept[site], seat, site).said["opened"])
    given = Unmasking(
        session=session,
        codec=proposal.codec,
        ring_bits=proposal.ring_bits,
        shares=proposal.shares,
        sharers=sites,
        survivors=survivors,
        neighbours={site: masks.neighbours(session, sites, near, site) for site in sites},
        adverts={site: canonical.decode(Advert, kept[site].said["advert"]) for site in sites},
        opened=opened,
    )
    return Session(given, kept, seats)


def total(streams: list[tuple[object, int]]) -> np.ndarray:
    """The first words of the streams, added with their signs."""
    found = np.zeros(WORDS, np.uint32)
    for stream, sign in streams:
        words = np.empty(WORDS, "<u4")
        stream.words(0, words)  # type: ignore[attr-defined]
        (np.add if sign > 0 else np.subtract)(found, words, out=found)
    return found


def check(session: Session) -> None:
    """What is to be taken off is exactly what the survivors have put on."""
    put_on = np.zeros(WORDS, np.uint32)
    for site in session.given.survivors:
        put_on += total(mask_secrets.streams(session.kept[site], session.seats[site], site))
    np.testing.assert_array_equal(total(unmasking.left_streams(session.given)), put_on)


def lying(session: Session, *liars: str, share: str = "22" * 33) -> Session:
    """The session in which these sites open garbage."""
    opened = {
        site: Opened(said.session, dict.fromkeys(said.seeds, share), dict.fromkeys(said.keys, share))
        if site in liars
        else said
        for site, said in session.given.opened.items()
    }
    return replace(session, given=replace(session.given, opened=opened))


@pytest.mark.parametrize(("count", "lost"), [(3, 0), (5, 1), (10, 3), (33, 6)])
def test_what_comes_off_is_what_was_put_on(count: int, lost: int) -> None:
    """On the complete graph and on a regular one, with as many lost as the threshold allows."""
    check(session_of(count, names(count)[1 : 1 + lost]))


@pytest.mark.parametrize("share", ["22" * 33, NO_SHARE, "ff" * 33])
def test_false_shares_are_found_out_and_others_used(share: str) -> None:
    """Of 10 with 7 needed, three may lie, whatever they say, also about a lost site's key."""
    check(lying(session_of(10), *names(10)[:3], share=share))
    check(lying(session_of(10, lost=names(10)[9:]), *names(10)[:2], share=share))


def test_too_many_false_shares_give_no_sum() -> None:
    """With six true shares of seven needed nothing comes off, and the sentence says whose secret it was."""
    with pytest.raises(BadUpdate, match="site-00's own mask do not give the secret"):
        unmasking.left_streams(lying(session_of(10), *names(10)[:4]).given)


def test_tries_are_bounded() -> None:
    """Where there are more sets of shares than can be tried, a thousand are."""
    tried = list(unmasking._sets([str(number) for number in range(32)], 21))
    assert len(tried) == unmasking.TRIES_MAX
    assert all(len(set(chosen)) == 21 for chosen in tried)
    assert tried[0] == tuple(str(number) for number in range(21))
    assert list(unmasking._sets(["a", "b"], 3)) == []


def test_three_liars_of_32_are_worked_around() -> None:
    """The first secret takes some tries; for the next ones the liars are known and asked last.

    One set in 30 is all true: that a thousand tries find none has a probability below 1e-14, and the draws
    are fixed by the sites' names.
    """
    check(lying(session_of(32), *names(32)[:3]))


def test_a_site_whose_boxes_do_not_open_spoils_the_sum_and_is_named() -> None:
    """Nobody holds a share of its secret but itself; the others say so instead of burning the session."""
    session = session_of(5, garbage_boxes_of="site-02")
    assert all(
        session.given.opened[site].seeds["site-02"] == NO_SHARE for site in names(5) if site != "site-02"
    )
    with pytest.raises(BadUpdate, match="site-02 shared garbage"):
        unmasking.left_streams(session.given)


def test_an_advert_with_a_key_that_makes_every_secret_known_is_refused() -> None:
    """A point of small order, or no hexadecimal at all."""
    good = session_of(3).given.adverts["site-00"]
    unmasking.check_advert(good)
    for key in ("00" * 32, "01" + "00" * 31, "zz", ""):
        for name in ("mask_key", "share_key"):
            with pytest.raises(RemoteError):
                unmasking.check_advert(replace(good, **{name: key}))


def masked_file(path: Path, **changes: object) -> MaskedHeader:
    fields = {
        "run": "tiny",
        "round": 1,
        "site": "ash",
        "session": "a" * 64,
        "codec": "fixed12s8",
        "num_elements": 5_000,
        "block_elements": 4096,
        "ring_bits": 15,
        "weight_max": 0,
    }
    header = MaskedHeader(**{**fields, **changes})  # type: ignore[arg-type]
    writer = MaskedWriter(path, header)
    words = np.zeros(header.num_elements, np.uint32)
    writer.absorb(writer.place(0, words, np.empty(4 * len(words), np.uint8)))
    writer.close()
    return header


def commit_of(path: Path, weight: int = 1, norm: float = 0.0) -> Commit:
    size_bytes = path.stat().st_size
    return Commit("tiny.1.1.ash", "d" * 64, size_bytes, weight, 3, norm, None, None, 0, 0.1, "", "")


def test_a_masked_upload_is_the_one_of_this_session(tmp_path: Path) -> None:
    """Every field of its header, its weight and norm, and its size to the byte."""
    path = tmp_path / "masked"
    header = masked_file(path)
    unmasking.check_masked_file(path, header, commit_of(path))
    unmasking.check_masked_size(header, path.stat().st_size)
    for size_bytes in (masked_size(header) - 1, masked_size(header) + 1):
        with pytest.raises(BadUpdate, match="15 bits a value"):
            unmasking.check_masked_size(header, size_bytes)
    others = {"session": "b" * 64, "site": "elm", "round": 2, "ring_bits": 16, "codec": "fixed12s9"}
    for name, value in others.items():
        expected = replace(header, **{name: value})
        with pytest.raises(BadUpdate, match=f"its {name} is"):
            unmasking.check_masked_file(path, expected, commit_of(path))
    for commit in (commit_of(path, weight=10), commit_of(path, norm=0.5)):
        with pytest.raises(BadUpdate, match="1 and 0 are valid"):
            unmasking.check_masked_file(path, header, commit)
