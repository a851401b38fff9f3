"""Keys, boxes and streams of masked sums: agreement on both sides, and refusal of everything else."""

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings, strategies as st

from fedtrain.errors import BadSignature, ConfigError, LocalError, RemoteError
from fedtrain.trust.masking import (
    BOX_EXTRA_BYTES,
    CtrStream,
    Label,
    MaskKeys,
    open_share,
    pair_seed,
    public_of,
    seal_share,
)

SESSION = "ab" * 32
ONE, TWO, THREE = (MaskKeys(hashlib.shake_256(bytes([number])).digest(96)) for number in (1, 2, 3))
LABEL = Label(SESSION, "north", "south", "cd" * 32)


def test_pairs_agree_and_nobody_else_does() -> None:
    """Both sides of a pair derive one seed; another pair or another session has another."""
    seed = pair_seed(ONE.mask_private, TWO.mask_public, SESSION)
    assert len(seed) == 32
    assert seed == pair_seed(TWO.mask_private, ONE.mask_public, SESSION)
    others = {
        pair_seed(ONE.mask_private, THREE.mask_public, SESSION),
        pair_seed(THREE.mask_private, TWO.mask_public, SESSION),
        pair_seed(ONE.mask_private, TWO.mask_public, "ac" * 32),
        pair_seed(ONE.mask_private, TWO.share_public, SESSION),
    }
    assert len(others) == 4
    assert seed not in others


def test_keys_that_are_none_name_their_source() -> None:
    """A public key of small order, or of another form, is refused with the name of whose it is."""
    for public in ("00" * 32, "01" + "00" * 31, "AB" * 32, "ab" * 31, ""):
        with pytest.raises(RemoteError, match="north"):
            pair_seed(ONE.mask_private, public, SESSION, "north")
    with pytest.raises(LocalError):
        pair_seed(ONE.mask_private, TWO.mask_public, "session")


def test_keys_survive_a_file_and_generate_anew() -> None:
    """Bytes and back are the same keys; generated ones differ; another file is a `ConfigError`."""
    again = MaskKeys.from_bytes(ONE.to_bytes())
    assert (again.mask_private, again.share_private, again.seed) == (
        ONE.mask_private,
        ONE.share_private,
        ONE.seed,
    )
    assert (again.mask_public, again.seed_digest) == (
        public_of(ONE.mask_private),
        hashlib.sha256(ONE.seed).hexdigest(),
    )
    fresh = MaskKeys.generate()
    assert len({fresh.mask_private, fresh.share_private, fresh.seed, ONE.seed}) == 4
    assert MaskKeys.generate().to_bytes() != fresh.to_bytes()
    for data in (b"", ONE.to_bytes()[:-1], b"X" + ONE.to_bytes()[1:]):
        with pytest.raises(ConfigError):
            MaskKeys.from_bytes(data)
    with pytest.raises(LocalError):
        MaskKeys(b"few")


def test_burnt_keys_cannot_be_used() -> None:
    """After `wipe` the secrets are gone from their memory, and asking for one is our mistake."""
    keys = MaskKeys.generate()
    keys.wipe()
    assert keys._secrets == b""
    for use in (lambda: keys.mask_private, lambda: keys.share_private, lambda: keys.seed):
        with pytest.raises(LocalError, match="burnt"):
            use()


def test_boxes_open_for_their_target_alone() -> None:
    """The target reads what the source sealed; a retry looks different and says the same."""
    box = seal_share(ONE.share_private, TWO.share_public, LABEL, b"two shares")
    assert len(box) == len(b"two shares") + BOX_EXTRA_BYTES
    assert open_share(TWO.share_private, ONE.share_public, LABEL, box) == b"two shares"
    again = seal_share(ONE.share_private, TWO.share_public, LABEL, b"two shares")
    assert again != box
    assert open_share(TWO.share_private, ONE.share_public, LABEL, again) == b"two shares"


@pytest.mark.parametrize(
    "label",
    [
        Label("ac" * 32, "north", "south", "cd" * 32),
        Label(SESSION, "east", "south", "cd" * 32),
        Label(SESSION, "north", "west", "cd" * 32),
        Label(SESSION, "south", "north", "cd" * 32),
        Label(SESSION, "north", "south", "ce" * 32),
    ],
)
def test_boxes_open_under_their_own_label_only(label: Label) -> None:
    """Another session, source, target, direction or set of keys: the box stays shut, the source is named."""
    box = seal_share(ONE.share_private, TWO.share_public, LABEL, b"two shares")
    with pytest.raises(BadSignature, match=label.source):
        open_share(TWO.share_private, ONE.share_public, label, box)


def test_altered_boxes_and_wrong_keys_stay_shut() -> None:
    """Any flipped byte, any cut, and any other key is a `BadSignature`."""
    box = seal_share(ONE.share_private, TWO.share_public, LABEL, b"two shares")
    for place in range(len(box)):
        altered = bytearray(box)
        altered[place] ^= 1
        with pytest.raises(BadSignature, match="north"):
            open_share(TWO.share_private, ONE.share_public, LABEL, bytes(altered))
    for cut in (b"", box[:11], box[:27], box[:-1], box + b"\0"):
        with pytest.raises(BadSignature):
            open_share(TWO.share_private, ONE.share_public, LABEL, cut)
    for private, public in (
        (THREE.share_private, ONE.share_public),
        (TWO.share_private, THREE.share_public),
        (TWO.mask_private, ONE.share_public),
    ):
        with pytest.raises(BadSignature):
            open_share(private, public, LABEL, box)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400_000), st.integers(0, 140_000), st.binary(min_size=32, max_size=32))
def test_streams_are_read_from_any_place(start: int, count: int, seed: bytes) -> None:
    """Any range equals what one read from the beginning has there, word borders and pieces aside."""
    cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    whole = cipher.update(bytes(4 * (start + count)))
    out = np.empty(count, "<u4")
    CtrStream(seed).words(start, out)
    assert out.tobytes() == whole[4 * start :]


def test_stream_golden_words() -> None:
    """AES-256 of the counter block 0 under the key of zeros, as published with the standard's test values."""
    out = np.empty(5, "<u4")
    CtrStream(bytes(32)).words(0, out)
    assert out[:4].tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    later = np.empty(1, "<u4")
    CtrStream(bytes(32)).words(2**42, later)
    assert later[0] != out[0]
    with pytest.raises(LocalError):
        CtrStream(b"short")
