"""What an upload may hold: sizes, names, numbers, weights, and files that are none (rows 44-52)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinator_world import LAYOUT, honest_header, whole_mean
from hostile_world import Arena, Refusal, arena_in, case, raw

from fedtrain.core import events as ev, messages as msg
from fedtrain.core.events import TimerFired
from fedtrain.core.orders import Order, OrderKind
from fedtrain.core.spec import LatePolicy
from fedtrain.errors import BadUpdate
from fedtrain.methods.codecs import codec
from fedtrain.methods.updatefile import MAGIC
from fedtrain.wire.calls import call
from fedtrain.wire.v1 import transfer_pb2

TWO_TO_63 = 1 << 63
CRAFTED_BYTES = 4 * LAYOUT.num_elements
PICKLE = b"\x80\x05cos\nsystem\n\x8c\x04true\x85R."
"""Runs a command in whoever reads it as an object."""


def header_of(order: Order, **changes: Any) -> bytes:
    """The header of an honest update, with any field changed to anything."""
    plain = {**dataclasses.asdict(honest_header(order)), **changes}
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


async def upload_all(arena: Arena, files: Iterable[tuple[object, Callable[[Order], bytes], str]]) -> None:
    """Each liar uploads one file, given as (name, order to bytes, words of the refusal): every one is a
    `BadUpdate`, journaled, and the run comes to its end with what the honest sites sent."""
    for count, (liar, (name, make, words)) in enumerate(zip(arena.liars, files, strict=True), 1):
        order, path = arena.orders[liar.name], liar.folder / "crafted"
        path.write_bytes(make(order))
        with case(name), pytest.raises(BadUpdate, match=words) as refused:
            await arena.upload(path, liar.commit(order, path), liar)
        assert len(str(refused.value)) < 2_100 and str(refused.value).isprintable(), name
        assert not arena.hub.pulse.progress
        assert len(arena.rows("UpdateRejected")) == count, name
    await arena.finish()


def with_header(text: bytes, body: bytes) -> bytes:
    return MAGIC + len(text).to_bytes(4, "little") + text + body


HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"num_elements": TWO_TO_63}, "num_elements"),
    ({"num_elements": -1}, "num_elements"),
    ({"num_elements": 1 << 200}, "num_elements"),
    ({"num_elements": True}, "num_elements"),
    ({"num_elements": 1e18}, "num_elements"),
    ({"block_elements": 0}, "block_elements"),
    ({"block_elements": -4096}, "block_elements"),
    ({"block_elements": TWO_TO_63}, "block_elements"),
    ({"round": TWO_TO_63}, "absurd"),
    ({"base_version": -1}, "negative"),
    ({"codec": "../../etc/passwd"}, "codec"),
    ({"codec": "pickle"}, "codec"),
    ({"site": "../mallory"}, "not a name"),
    ({"run": "tiny\x1b[2J"}, "not a name"),
    ({"layout_digest": "/etc/shadow"}, "layout_digest"),
    ({"clip_norm": -1.0}, "clip_norm"),
    ({"surplus": 1}, "unknown field"),
    ({"dtype": "object"}, "unknown field"),
]


async def test_headers_of_impossible_numbers_are_refused(tmp_path: Path) -> None:
    """Sizes of 2^63 and beyond, negative ones, wrong types, foreign codecs and path tricks in the header of
    an update are refused in words that name the field, journaled, and the round goes on without its site."""
    async with arena_in(tmp_path, liars=len(HEADERS)) as arena:
        await upload_all(
            arena,
            [
                (
                    changes,
                    lambda order, c=changes: with_header(header_of(order, **c), bytes(CRAFTED_BYTES)),
                    words,
                )
                for changes, words in HEADERS
            ],
        )


FILES: dict[str, bytes] = {
    "pickle": PICKLE.ljust(CRAFTED_BYTES + 500, b"."),
    "old pickle": b"cos\nsystem\n(S'true'\ntR.".ljust(CRAFTED_BYTES + 500, b"\n"),
    "zip as torch writes it": b"PK\x03\x04".ljust(CRAFTED_BYTES + 500, b"\0"),
    "numpy": b"\x93NUMPY\x01\x00".ljust(CRAFTED_BYTES + 500, b" "),
    "gzip": b"\x1f\x8b\x08".ljust(CRAFTED_BYTES + 500, b"\0"),
    "endless header": MAGIC + b"\xff\xff\xff\xff" + bytes(CRAFTED_BYTES + 500),
    "header of nothing": with_header(b"", bytes(CRAFTED_BYTES + 500)),
    "header that is deep": with_header(b"[" * 40_000, bytes(CRAFTED_BYTES)),
    "header of a digit bomb": with_header(b'{"run":' + b"9" * 40_000 + b"}", bytes(CRAFTED_BYTES)),
    "header of half a letter": with_header(b'{"run":"\xff"}', bytes(CRAFTED_BYTES)),
}


async def test_files_that_are_no_updates_are_refused_by_their_first_bytes(tmp_path: Path) -> None:
    """Pickles, archives and broken headers in the place of an update are refused unread and never run."""
    async with arena_in(tmp_path, liars=len(FILES)) as arena:
        await upload_all(arena, [(name, lambda _, d=data: d, "update: ") for name, data in FILES.items()])


MODELS: dict[str, bytes] = {
    "pickle": PICKLE.ljust(200, b"\0"),
    "a header beyond the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "no tensors": struct.pack("<Q", 8) + b'{"a":1} ',
    "a deep header": struct.pack("<Q", 65_536) + (b'{"a":' + b"[" * 30_000).ljust(65_536),
    "a wide header": struct.pack("<Q", 3_000_008) + (b'{"a":[' + b"[]," * 999_000 + b"[]]}").ljust(3_000_008),
}


async def seed_with(
    arena: Arena, run: str, change: Callable[[bytes, msg.Commit], tuple[bytes, dict[str, str]]]
) -> None:
    """Beta, asked for the first weights of a new run, sends what `change` makes of its file and commit."""
    maker = arena.site("beta")
    spec = dataclasses.replace(arena.run.spec, run=run, sites=("beta", "mallory"))
    await arena.consortium.operator.start(spec)
    order = await maker.order()
    assert (order.run, order.kind) == (run, OrderKind.SEED)
    path = maker.make_file(order, 0.0)
    data, changes = change(path.read_bytes(), maker.commit(order, path))
    path.write_bytes(data)
    commit = dataclasses.replace(maker.commit(order, path), **changes)
    with pytest.raises(BadUpdate, match=r"model: |layout") as refused:
        await arena.upload(path, commit, maker)
    assert len(str(refused.value)) < 2_100 and str(refused.value).isprintable()
    assert arena.hub.state.runs[run].model is None
    await arena.consortium.operator.stop(run)
    # Else the third case would put beta in quarantine, which has tests of its own.
    arena.hub.submit(ev.SiteReleased(arena.hub.clock.now_ms(), "beta", "operator", "a test goes on"))


async def test_initial_models_that_are_none_are_refused(arena: Arena) -> None:
    """Pickle and broken safetensors as initial weights are refused, and other runs go on."""
    for index, (name, data) in enumerate(MODELS.items()):
        with case(name):
            await seed_with(arena, f"model-{index}", lambda _, __, d=data: (d, {}))
    await arena.finish()


LAYOUTS: dict[str, str] = {
    "other names": LAYOUT.to_json().replace('"w"', '"x"'),
    "other shapes": LAYOUT.to_json().replace("[3,4]", "[4,3]"),
    "an extra tensor": LAYOUT.to_json().replace(
        "]}", ',{"dtype":"float32","name":"z","role":"averaged","scope":"shared","shape":[1]}]}'
    ),
    "a tensor less": '{"entries":[' + LAYOUT.to_json().split("},{")[0].removeprefix('{"entries":[') + "}]}",
    "another dtype": LAYOUT.to_json().replace("float32", "float64", 1),
    "a path for a name": LAYOUT.to_json().replace('"w"', '"../w"'),
    "an escape code for a name": LAYOUT.to_json().replace('"w"', '"\\u001b[2J"'),
    "markup for a name": LAYOUT.to_json().replace('"w"', '"<script>alert(1)</script>"'),
    "a long name": LAYOUT.to_json().replace('"w"', f'"{"w" * 10_000}"'),
    "a zero byte in a name": LAYOUT.to_json().replace('"w"', '"w\\u0000"'),
    "2^63 elements": LAYOUT.to_json().replace("[3,4]", f"[{TWO_TO_63}]"),
    "a negative size": LAYOUT.to_json().replace("[3,4]", "[-3,-4]"),
    "an overflowing product": LAYOUT.to_json().replace("[3,4]", "[4294967296,4294967296]"),
    "a deep document": "[" * 100_000,
    "a wide document": '{"entries":[' + "{}," * 900_000 + "{}]}",
    "no document": "\x00",
}


async def test_layouts_that_lie_are_refused(arena: Arena) -> None:
    """A layout with other, missing or extra tensors, foreign types, impossible shapes or tricks in names
    is refused with a sentence of bounded length, and other runs go on."""
    for index, (name, layout) in enumerate(LAYOUTS.items()):
        with case(name):
            await seed_with(arena, f"layout-{index}", lambda data, _, text=layout: (data, {"layout": text}))
    await arena.finish()


async def raw_offer(arena: Arena, size_bytes: int) -> Refusal:
    offer = transfer_pb2.Offer(order=arena.order.id, digest="ab" * 32, size_bytes=size_bytes)
    answer = await raw(arena.liar.keys, call("Transfer", "Offer").path, offer.SerializeToString())
    assert isinstance(answer, Refusal)
    return answer


async def test_sizes_that_do_not_follow_from_the_layout_are_refused_before_a_byte(arena: Arena) -> None:
    """An update's size is known from the layout: no other is accepted, nor takes any disk."""
    for size_bytes in (0, 1, 63, 64, (1 << 16) + 65, 1 << 40, TWO_TO_63, 2 * TWO_TO_63 - 1):
        refusal = await raw_offer(arena, size_bytes)
        assert refusal.status == "INVALID_ARGUMENT" and "bytes" in refusal.sentence, refusal
    assert list((arena.hub.blobs.folder / "partial").iterdir()) == []
    await arena.finish()


COMMITS: list[tuple[dict[str, Any], str]] = [
    ({"weight": 10**18}, "weight"),
    ({"weight": TWO_TO_63}, "weight"),
    ({"size_bytes": TWO_TO_63}, "size_bytes"),
    ({"steps": 2 * TWO_TO_63 - 1}, "steps"),
    ({"norm": math.nan}, "norm"),
    ({"norm": -1.0}, "norm"),
    ({"train_loss": math.inf}, "train_loss"),
    ({"eval_loss": math.nan}, "eval_loss"),
    ({"seconds": -math.inf}, "seconds"),
    ({"digest": "../" * 20 + "etcd"}, "digest"),
    ({"order": "../../x"}, "order"),
    ({"signature": "\x1b]0;x\x07"}, "signature"),
]


async def test_commits_of_impossible_numbers_are_refused(arena: Arena) -> None:
    """Weights beyond 2^53, counts of 2^63, losses that are no numbers and texts that are no digests are
    INVALID_ARGUMENT with the field's name, whatever was uploaded; the run goes on at quorum."""
    path = arena.liar.make_file(arena.order, 1.0)
    commit = arena.liar.commit(arena.order, path)
    await arena.liar.client.offer(msg.Offer(commit.order, commit.digest, commit.size_bytes))
    await arena.liar.client.send_file(path, commit.digest, commit.size_bytes)
    honest = {name: value for name, value in dataclasses.asdict(commit).items() if value is not None}
    for changes, words in COMMITS:
        message = transfer_pb2.Commit(**{**honest, **changes})
        answer = await raw(arena.liar.keys, call("Transfer", "Commit").path, message.SerializeToString())
        assert isinstance(answer, Refusal), changes
        assert (answer.status, answer.code) == ("INVALID_ARGUMENT", "bad_update"), answer
        assert words in answer.sentence, changes
    assert arena.rows("UpdateStored") == []
    await arena.finish()


async def test_an_update_of_nothing_is_refused(arena: Arena) -> None:
    """A signed weight of zero, a site without examples, is refused and journaled; the others go on."""
    path = arena.liar.make_file(arena.order, 1.0)
    with pytest.raises(BadUpdate, match="weight of 0"):
        await arena.upload(path, arena.liar.commit(arena.order, path, weight=0))
    assert len(arena.rows("UpdateRejected")) == 1
    await arena.finish()


async def test_a_negative_weight_cannot_be_written(arena: Arena) -> None:
    """Ten bytes that spell -1 in a field without a sign are a huge count, and refused as one."""
    commit = arena.liar.commit(arena.order, arena.liar.make_file(arena.order, 1.0))
    head = transfer_pb2.Commit(order=commit.order, digest=commit.digest, signature=commit.signature)
    message = head.SerializeToString() + b"\x20" + b"\xff" * 9 + b"\x01"
    answer = await raw(arena.liar.keys, call("Transfer", "Commit").path, message)
    assert isinstance(answer, Refusal) and "weight" in answer.sentence
    await arena.finish()


VALUES: dict[str, np.ndarray[Any, Any]] = {
    name: np.concatenate([np.ones(LAYOUT.num_elements - 1, np.float32), np.array([bad], np.float32)])
    for name, bad in {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1e30": 1e30}.items()
}


async def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """One NaN, infinity or absurd value in an update is found, refused, journaled, and counts nowhere."""
    async with arena_in(tmp_path, liars=len(VALUES)) as arena:
        await upload_all(
            arena,
            [
                (name, lambda o, v=values: with_header(header_of(o), v.astype("<f4").tobytes()), "not finite")
                for name, values in VALUES.items()
            ],
        )


SPELLINGS: dict[str, list[bytes]] = {
    "int8": [struct.pack("<f", step) for step in (math.nan, math.inf, -math.inf, -1.0, 3e38)],
    "bfloat16": [struct.pack("<f", value)[2:] for value in (math.nan, math.inf, -math.inf, 3e38)],
    "float16": [struct.pack("<H", half) for half in (0x7E00, 0x7C00, 0xFC00, 0xFFFF)],
}


@pytest.mark.parametrize("name", SPELLINGS)
async def test_hostile_numbers_of_codecs_are_refused(tmp_path: Path, name: str) -> None:
    """A codec's own numbers (steps of `int8`, values of the others) that decode to nothing finite, or that no
    encoder writes, are refused; the honest updates beside them make the version."""
    honest = codec(name).encode(np.ones(LAYOUT.num_elements, np.float32), bytes(32)).tobytes()
    place = _place_of_step(honest) if name == "int8" else 0
    bodies = [honest[:place] + text + honest[place + len(text) :] for text in SPELLINGS[name]]
    async with arena_in(tmp_path, liars=len(bodies), codec_up=name) as arena:
        await upload_all(
            arena, [(body, lambda o, b=body: with_header(header_of(o), b), "update of") for body in bodies]
        )


def _place_of_step(encoded: bytes) -> int:
    """Where the step of an `int8` chunk stands: it is what encodings of another scale differ in."""
    other = codec("int8").encode(np.full(LAYOUT.num_elements, 2.0, np.float32), bytes(32)).tobytes()
    first = next(place for place, (a, b) in enumerate(zip(encoded, other, strict=True)) if a != b)
    return first - first % 4


async def test_a_norm_above_the_bound_is_clipped_to_it(tmp_path: Path) -> None:
    """With `norm_max` a huge update moves the model by no more than the bound allows."""
    bound = math.sqrt(LAYOUT.num_elements)  # the norm of the honest updates of ones
    async with arena_in(tmp_path, norm_max=bound, rounds=1) as arena:
        path = arena.liar.make_file(arena.order, 1e9)
        receipt = await arena.upload(path, arena.liar.commit(arena.order, path))
        assert receipt.outcome == "stored"
        await arena.finish(liar_counts=True)
        whole_mean(arena.hub.versions.public("tiny", 1), 1.0)  # clipped, it is a vector of ones as well


async def test_a_late_update_of_a_liar_is_held_to_the_same_bounds(tmp_path: Path) -> None:
    """With `late: next_round` an update that comes after its round closed is inspected like any other."""
    async with arena_in(tmp_path, late=LatePolicy.NEXT_ROUND, rounds=3) as arena:
        for name in ("alpha", "beta"):
            arena.site(name).consent(arena.orders[name])
            await arena.site(name).answer(arena.orders[name], 1.0)
        opened = arena.run.round
        assert opened is not None
        arena.hub.submit(TimerFired(opened.deadline_ms + 1, "tiny", "deadline.1.1"))  # so late is it now
        await arena.until(lambda: "mallory" in arena.run.busy)
        path = arena.liar.folder / "crafted"
        path.write_bytes(with_header(header_of(arena.order), VALUES["nan"].tobytes()))
        with pytest.raises(BadUpdate, match="not finite"):
            await arena.upload(path, arena.liar.commit(arena.order, path))
        assert "mallory" not in arena.run.busy
        stored = [json.loads(row.payload)["blob"] for row in arena.rows("UpdateStored")]
        assert hashlib.sha256(path.read_bytes()).hexdigest() not in stored
