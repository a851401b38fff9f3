"""What a site keeps of a masked session, and the words that it makes of it.

    state/masks/<order id>    0600: the session's secrets, the shares of others, the words that were said

A word is in the file, durable, before it is said, so it is said again with the same bytes. Before `opened`
is said, nothing but that word is left in the file. What a file held is overwritten before it is let go; on
disks that never write in place (SSDs, copy-on-write file systems) that is a hope, not a promise.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedtrain.core import canonical, masks
from fedtrain.core.agent_state import MaskSeat
from fedtrain.core.masks import Advert, Boxes, Delivery, Keys, Opened, Proposal
from fedtrain.errors import ConfigError, RemoteError
from fedtrain.methods.masking import SignedStream
from fedtrain.methods.shamir import SHARE_BYTES, split
from fedtrain.storage.filesystem import disk_errors
from fedtrain.trust import private_files
from fedtrain.trust.masking import CtrStream, Label, MaskKeys, open_share, pair_seed, seal_share

_log = logging.getLogger("fedtrain.peer")

FILE_BYTES_MAX = 4 << 20
"""A session of a thousand sites keeps about a megabyte."""

NO_SHARE = "00"
"""Said in place of a share that this site never got: the box from its owner did not open."""

_GONE = "is missing: the session that it was for is over"


@dataclass(frozen=True)
class Kept:
    """One session's file.

    Attributes:
        secrets: `MaskKeys`, hex; "" once they are destroyed.
        own_share: this site's share of its own seed, hex.
        keys: the document with everybody's keys.
        sharers: sites that mask with one another, as the delivery named them; empty before.
        shares: neighbour that has shared -> its shares for this site, key and seed behind one another, hex.
        said: topic -> the document that was said, or is about to be.
    """

    session: str
    secrets: str = ""
    own_share: str = ""
    keys: str = ""
    sharers: tuple[str, ...] = ()
    shares: Mapping[str, str] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)


class MaskFolder:
    """The sessions' files. Blocking, so it belongs into threads; one piece of work per order at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, known: Iterable[str]) -> None:
        """Make the folder, and destroy what lies there of other orders than these, drafts too."""
        private_files.make_private_folder(self._folder)
        with disk_errors(f"list {self._folder}"):
            names = [path.name for path in self._folder.iterdir()]
        for name in sorted(set(names) - set(known)):
            self.destroy(name)

    def has(self, order: str) -> bool:
        """Whether there is a file for this order."""
        return (self._folder / order).exists()

    def load(self, order: str) -> Kept | None:
        """What is kept; None if there is nothing. `ConfigError` if it is not a file that was written here."""
        path = self._folder / order
        if not path.exists():
            return None
        try:
            return canonical.decode(Kept, private_files.read_private(path, _GONE, FILE_BYTES_MAX))
        except RemoteError as error:
            raise ConfigError(f"was changed ({error}): remove it", file=str(path)) from error

    def save(self, order: str, kept: Kept) -> Kept:
        """Keep it, durable when this returns; what the file held before is overwritten."""
        with self._letting_go(order):
            private_files.write_private(self._folder / order, canonical.encode(kept))
        return kept

    def destroy(self, order: str) -> None:
        """Nothing of the session is left."""
        path = self._folder / order
        with self._letting_go(order), disk_errors(f"delete {path}"):
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _letting_go(self, order: str) -> Iterator[None]:
        """Around what takes the file out of its place: then its content goes too."""
        path = self._folder / order
        descriptor = -1
        with disk_errors(f"overwrite {path}"):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                yield
                if descriptor >= 0:
                    os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
                    os.fsync(descriptor)
            finally:
                if descriptor >= 0:
                    os.close(descriptor)


def advert(seat: MaskSeat, site: str) -> Kept:
    """New keys, and the word that announces them."""
    keys = MaskKeys.generate()
    word = Advert(seat.session, site, keys.mask_public, keys.share_public, keys.seed_digest)
    kept = Kept(seat.session, secrets=keys.to_bytes().hex(), said={"advert": masks.spelled(word)})
    keys.wipe()
    return kept


def boxes(kept: Kept, seat: MaskSeat, site: str, keys_document: str) -> Kept:
    """Shares of this site's secrets, sealed for each neighbour whose keys take part.

    They are cut for all neighbours of the proposal, so everybody's number is the same whoever is left.
    """
    proposal = canonical.decode(Proposal, seat.proposal)
    adverts, digest = _adverts(keys_document), masks.digest_of(keys_document)
    near = masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, site)
    holders = sorted((site, *near))
    numbers = range(1, len(holders) + 1)
    sealed = {}
    with _secrets(kept) as own:
        key_shares, seed_shares = (
            split(secret, proposal.shares, numbers, os.urandom) for secret in (own.mask_private, own.seed)
        )
        for number, peer in zip(numbers, holders, strict=True):
            if peer in near and peer in seat.members:
                label = Label(seat.session, site, peer, digest)
                payload = key_shares[number] + seed_shares[number]
                box = seal_share(own.share_private, adverts[peer].share_key, label, payload)
                sealed[peer] = base64.b64encode(box).decode()
    word = masks.spelled(Boxes(seat.session, digest, sealed))
    own_share = seed_shares[holders.index(site) + 1].hex()
    return replace(kept, keys=keys_document, own_share=own_share, said={**kept.said, "boxes": word})


def delivered(kept: Kept, seat: MaskSeat, site: str, document: str) -> Kept:
    """With the shares that others have for this site. One whose box does not open is told of, and left out:
    enough others hold true shares, or nobody gets the sum.
    """
    delivery = canonical.decode(Delivery, document)
    adverts, digest = _adverts(kept.keys), masks.digest_of(kept.keys)
    shares = {}
    with _secrets(kept) as own:
        for peer, box in delivery.boxes.items():
            label = Label(seat.session, peer, site, digest)
            try:
                sealed = base64.b64decode(box, validate=True)
                payload = open_share(own.share_private, adverts[peer].share_key, label, sealed)
            except (RemoteError, binascii.Error) as error:
                _log.warning(
                    "%s has shared nothing usable in masked session %s: %s", peer, seat.session, error
                )
                continue
            if len(payload) == 2 * SHARE_BYTES:
                shares[peer] = payload.hex()
    return replace(kept, sharers=seat.sharers, shares=shares)


def streams(kept: Kept, seat: MaskSeat, site: str) -> list[SignedStream]:
    """This site's masks: its own, and one with each neighbour that has shared."""
    proposal, adverts = canonical.decode(Proposal, seat.proposal), _adverts(kept.keys)
    near = masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, site)
    with _secrets(kept) as own:
        found: list[SignedStream] = [(CtrStream(own.seed), +1)]
        for peer in near:
            if peer in kept.sharers:
                seed = pair_seed(own.mask_private, adverts[peer].mask_key, seat.session, peer)
                found.append((CtrStream(seed), +1 if site < peer else -1))
    return found


def opened(kept: Kept, seat: MaskSeat, site: str) -> Kept:
    """One share per neighbour: of a survivor's seed, of a lost site's key. Nothing else is left."""

    def share(peer: str, part: slice) -> str:
        return kept.shares[peer][part] if peer in kept.shares else NO_SHARE

    key, seed = slice(0, 2 * SHARE_BYTES), slice(2 * SHARE_BYTES, None)
    proposal = canonical.decode(Proposal, seat.proposal)
    near = masks.neighbours(seat.session, tuple(proposal.sites), proposal.degree, site)
    peers = [peer for peer in near if peer in kept.sharers]
    seeds = {peer: share(peer, seed) for peer in peers if peer in seat.survivors}
    keys = {peer: share(peer, key) for peer in peers if peer not in seat.survivors}
    word = masks.spelled(Opened(seat.session, {**seeds, site: kept.own_share}, keys))
    return Kept(kept.session, said={"opened": word})


def own_advert_fault(kept: Kept | None, keys: Keys, site: str) -> str:
    """Why the site's own advert among all keys is not the one that it made; "" if it is."""
    mine = keys.adverts.get(site)
    if kept is None or mine is None or mine.document != kept.said.get("advert"):
        return "the keys hold another advert of this site than it has said"
    return ""


@contextlib.contextmanager
def _secrets(kept: Kept) -> Iterator[MaskKeys]:
    """In memory for no longer than they are used."""
    keys = MaskKeys.from_bytes(bytes.fromhex(kept.secrets))
    try:
        yield keys
    finally:
        keys.wipe()


def _adverts(keys_document: str) -> dict[str, Advert]:
    keys = canonical.decode(Keys, keys_document)
    return {site: canonical.decode(Advert, signed.document) for site, signed in keys.adverts.items()}
