"""Taking the masks off a sum: secrets from shares, each held against its advert, and the mean beneath.

Of a survivor the seed of its own mask is put together, of a lost site the key of the masks that it shares
with the survivors; never both of one. What comes out is one update file, the mean, for as long as a version
is made of it. Shares may be false: then others are tried, as many as `TRIES_MAX`.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedtrain.core import canonical, masks
from fedtrain.core.effects import Aggregate, Unmasking
from fedtrain.core.masks import Advert
from fedtrain.core.messages import Commit
from fedtrain.core.orders import Order, OrderKind, order_id
from fedtrain.core.state import RunState
from fedtrain.errors import BadUpdate, LocalError, RemoteError, StaleRound
from fedtrain.methods import masking
from fedtrain.methods.aggregation import Contribution
from fedtrain.methods.maskedfile import MaskedHeader, MaskedReader, header_of, masked_size
from fedtrain.methods.masking import SignedStream
from fedtrain.methods.shamir import combine
from fedtrain.methods.updatefile import UpdateHeader
from fedtrain.trust.masking import CtrStream, MaskKeys, pair_seed, public_of

_log = logging.getLogger(__name__)

TRIES_MAX = 1_000
"""Sets of shares tried for one secret. With 3 of 32 shares false and 21 needed, one set in 30 is all true."""

MEAN = "mean"
"""Whose the file of the mean says it is; no site's, but a file of an update names one."""


def check_advert(advert: Advert) -> None:
    """Holds that others can agree on secrets with these keys; `RemoteError` if not."""
    probe = MaskKeys.generate()
    for public in (advert.mask_key, advert.share_key):
        pair_seed(probe.mask_private, public, "0" * 64, advert.site[:80])
    probe.wipe()


def masked_header(run: RunState, order: Order) -> MaskedHeader | None:
    """What the masked answer to this order has to say of itself; None if it is to be a plain one."""
    terms = masks.mask_terms(order.task)
    if terms is None or order.kind is not OrderKind.TRAIN:
        return None
    opened, model = run.round, run.model
    if opened is None or opened.masks is None or model is None:
        raise StaleRound(f"the masked session of {order.id} is over")
    proposal = canonical.decode(masks.Proposal, opened.masks.proposal)
    return header_of(proposal, opened.masks.session, order.site, model.num_elements, terms.weight_max)


def check_masked_size(header: MaskedHeader, size_bytes: int) -> None:
    """Every value takes the same bits, so the size of a masked update is known to the byte."""
    if size_bytes != masked_size(header):
        raise BadUpdate(
            f"the masked update of {header.site} has {size_bytes} bytes; in this session, with "
            f"{header.ring_bits} bits a value, it has {masked_size(header)}"
        )


def check_masked_file(path: Path, expected: MaskedHeader, commit: Commit) -> None:
    """Holds that the file is the masked update that was asked for; what is in it nobody can tell."""
    if (commit.weight, commit.norm) != (1, 0.0):
        raise BadUpdate(
            f"{commit.order} is masked, and its commit tells a weight or a norm: 1 and 0 are valid"
        )
    with MaskedReader(path) as reader:
        for name, value in vars(expected).items():
            found = getattr(reader.header, name)
            if found != value:
                raise BadUpdate(
                    f"masked update of {expected.site}: its {name} is {found!r}, expected {value!r}"
                )


def mean_of(
    run: RunState, effect: Aggregate, masked: Sequence[Contribution], target: Path, threads: int
) -> Contribution:
    """Write the mean of what lies under the masks to `target`, as one contribution to a version.

    Raises `BadUpdate` if a secret cannot be had, or the sum is one that honest sites cannot make.
    """
    given, model = effect.masks, run.model
    if given is None or model is None or run.round is None or {c.site for c in masked} != {*given.survivors}:
        raise LocalError("the sum of other updates was asked for than those that the sites have affirmed")
    order = run.round.seats[given.survivors[0]].order
    header = masked_header(run, order)
    if header is None or header.session != given.session:
        raise LocalError("the sum of another session was asked for than the open one")
    streams = left_streams(given)
    found = masking.unmask(
        masking.Unmasking(
            masked=[item.path for item in masked],
            header=header,
            seed=run.spec.seed,
            streams=streams,
            noise_max=0,  # noise is part of the levels, which the codec bounds
            mean=_mean_header(run, effect, header),
            target=target,
        ),
        threads,
    )
    lost = sorted(set(given.sharers) - set(given.survivors))
    _log.info(
        "%s: the masks of round %d are off, of %d sites%s; sum of levels %s",
        run.spec.run,
        effect.round,
        len(given.survivors),
        f" without {', '.join(lost)}" if lost else "",
        found.sum_digest,
    )
    order_of_mean = order_id(effect.run, effect.round, effect.attempt, MEAN)
    return Contribution(MEAN, order_of_mean, target, weight=1.0, norm=found.norm)


def _mean_header(run: RunState, effect: Aggregate, header: MaskedHeader) -> UpdateHeader:
    assert run.model is not None, "a masked round has a model"
    return UpdateHeader(
        run=effect.run,
        round=effect.round,
        site=MEAN,
        direction="up",
        base_version=effect.base_version,
        layout_digest=run.model.ref.layout_digest,
        codec="float32",
        block_elements=header.block_elements,
        num_elements=header.num_elements,
        clip_norm=None,
    )


def left_streams(given: Unmasking) -> list[SignedStream]:
    """The streams that are still in the sum of the survivors' updates, with the sign that they have there."""
    shares = _Shares(given)
    streams: list[SignedStream] = [
        (CtrStream(shares.secret(site, survives=True)), +1) for site in given.survivors
    ]
    for lost in given.sharers:
        if lost in given.survivors:
            continue
        private = shares.secret(lost, survives=False)
        for site in given.neighbours[lost]:
            if site in given.survivors:
                seed = pair_seed(private, given.adverts[site].mask_key, given.session, site)
                streams.append((CtrStream(seed), +1 if site < lost else -1))
    return streams


class _Shares:
    """What the survivors gave, put together. Who is found to have given a false share is asked last."""

    def __init__(self, given: Unmasking) -> None:
        self._given = given
        self._liars: set[str] = set()

    def secret(self, site: str, survives: bool) -> bytes:
        """The seed of a survivor's own mask, or the private mask key of a lost site."""
        given, advert = self._given, self._given.adverts[site]

        def fits(secret: bytes) -> bool:
            if survives:
                return hashlib.sha256(secret).hexdigest() == advert.seed_digest
            return public_of(secret) == advert.mask_key

        what = "own mask" if survives else "masks with others"
        holders = sorted((site, *given.neighbours[site]))
        told: dict[str, bytes] = {}
        for holder, opened in given.opened.items():
            share = (opened.seeds if survives else opened.keys).get(site)
            if share is not None and holder in holders:
                told[holder] = bytes.fromhex(share)
        numbers = {holder: holders.index(holder) + 1 for holder in told}
        found = self._tried(told, numbers, fits)
        if found is None:
            raise BadUpdate(
                f"the {len(told)} shares of {site}'s {what} do not give the secret that it has announced, and"
                f" {given.shares} true ones would: {site} shared garbage, or too many sites gave some"
            )
        secret, used = found
        self._note_liars(told, numbers, used, f"{site}'s {what}")
        return secret

    def _tried(
        self, told: Mapping[str, bytes], numbers: Mapping[str, int], fits: Callable[[bytes], bool]
    ) -> tuple[bytes, tuple[str, ...]] | None:
        """The secret, and whose shares gave it."""
        least = self._given.shares
        for chosen in _sets(sorted(told, key=lambda name: (name in self._liars, name)), least):
            try:
                secret = combine([(numbers[name], told[name]) for name in chosen], least)
            except RemoteError:
                continue
            if fits(secret):
                return secret, chosen
        return None

    def _note_liars(
        self, told: Mapping[str, bytes], numbers: Mapping[str, int], used: tuple[str, ...], what: str
    ) -> None:
        good = [(numbers[name], told[name]) for name in used]
        for name in sorted(set(told) - set(used) - self._liars):
            try:
                combine([*good, (numbers[name], told[name])], len(used))
            except RemoteError:
                self._liars.add(name)
                _log.warning("the share of %s that %s gave is false; others are enough", what, name)


def _sets(names: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """At most `TRIES_MAX` sets of so many names, the first of them first; all there are if they are few."""
    if len(names) < size:
        return
    if math.comb(len(names), size) <= TRIES_MAX:
        yield from itertools.combinations(names, size)
        return
    yield tuple(names[:size])
    drawn = random.Random(" ".join(names))
    for _ in range(TRIES_MAX - 1):
        yield tuple(drawn.sample(names, size))
