"""The layout: what it computes, and that hostile documents cannot become one."""

import json

import pytest
from hypothesis import given, strategies as st

from fedtrain.errors import BadUpdate, RemoteError
from fedtrain.methods.layout import Entry, Layout

SMALL = Layout((Entry("a", (2, 3)), Entry("own", (5,), scope="private"), Entry("b", ())))


def document(**changes: object) -> str:
    """JSON of a layout of one entry, with fields changed."""
    return json.dumps({"entries": [{"name": "w", "shape": [2], **changes}]})


def test_shared_entries_lie_one_after_another() -> None:
    """Private entries take no place in the flat vector, a scalar takes one."""
    assert SMALL.num_elements == 7
    assert SMALL.offsets() == {"a": (0, 6), "b": (6, 7)}
    assert [entry.name for entry in SMALL.shared] == ["a", "b"]


def test_json_round_trip_keeps_the_digest() -> None:
    """A layout read from its own JSON is equal and has the same digest."""
    again = Layout.from_json(SMALL.to_json())
    assert again == SMALL
    assert again.digest == SMALL.digest
    assert len(SMALL.digest) == 64


def test_digest_tells_order_and_scope_apart() -> None:
    """Another order or another scope is another layout."""
    swapped = Layout(SMALL.entries[::-1])
    opened = Layout((*SMALL.entries[:1], Entry("own", (5,)), *SMALL.entries[2:]))
    assert len({SMALL.digest, swapped.digest, opened.digest}) == 3


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../w",
        "a/b",
        "a\\b",
        "a..b",
        ".w",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "__metadata__",
        "w" * 10_000,
        "ä",
        "a b",
    ],
)
def test_names_with_tricks_are_refused(name: str) -> None:
    """A name that could be a path, an escape code or a reserved word is refused."""
    with pytest.raises(BadUpdate):
        Layout.from_json(document(name=name))


@pytest.mark.parametrize(
    "shape",
    [[-1], [0], [2**63], [2**21, 2**21], [1] * 17, [2**39, 2**39, 2**39], [1.5], ["2"], [True], None, 3],
)
def test_impossible_shapes_are_refused(shape: object) -> None:
    """Negative, empty, overflowing, deep or mistyped shapes are refused."""
    with pytest.raises(BadUpdate):
        Layout.from_json(document(shape=shape))


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "float16"}, {"dtype": "object"}, {"scope": "public"}, {"role": "ignored"}, {"extra": 1}],
)
def test_unknown_words_are_refused(changes: dict[str, object]) -> None:
    """Unknown dtype, scope, role or field is refused."""
    with pytest.raises(BadUpdate):
        Layout.from_json(document(**changes))


def test_only_float32_is_said() -> None:
    """The message for another dtype says what is accepted."""
    with pytest.raises(BadUpdate, match="only float32"):
        Layout.from_json(document(dtype="int64"))


def test_duplicates_and_floods_are_refused() -> None:
    """A name twice, no entries, too many entries, or nothing shared is refused."""
    entry = {"name": "w", "shape": [1]}
    for entries in ([entry, entry], [], [{"name": f"w{i}", "shape": [1]} for i in range(100_001)]):
        with pytest.raises(BadUpdate):
            Layout.from_json(json.dumps({"entries": entries}))
    with pytest.raises(BadUpdate):
        Layout((Entry("own", (1,), scope="private"),))


@given(st.text() | st.binary().map(lambda data: data.decode("latin1")))
def test_any_text_is_a_layout_or_a_remote_error(text: str) -> None:
    """No text raises anything but a `RemoteError`."""
    with pytest.raises(RemoteError):
        Layout.from_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 5000, '{"entries":' * 3000, "9" * 10_000])
def test_deep_and_long_documents_are_refused(text: str) -> None:
    """Nesting and digits without end are refused, not followed."""
    with pytest.raises(BadUpdate):
        Layout.from_json(text)
