"""What YAML may do in a run or site file: hold plain values, and nothing beyond that."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtrain.config.document import DEPTH_MAX, FILE_BYTES_MAX, read_document
from fedtrain.errors import ConfigError

BILLION = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


def written(folder: Path, data: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


REFUSED = [
    ("a: 1\nb: 2\na: 3\n", 3, ["'a'", "twice", "line 1"]),
    ("a: 1\nb: {c: 1, c: 2}\n", 2, ["'c'", "twice"]),
    (BILLION, 1, ["anchors and aliases"]),
    ("a: 1\nb: *a\n", 2, ["anchors and aliases"]),
    (
        "x: 1\na: !!python/object/apply:os.system ['true']\n",
        2,
        ["!!python/object/apply:os.system", "not allowed"],
    ),
    ("a: !!python/name:os.system ''\n", 1, ["!!python/name:os.system"]),
    ("x: 1\n\na: !secret {b: 1}\n", 3, ["'!secret'"]),
    ("a: !!binary aGVsbG8=\n", 1, ["!!binary"]),
    ("a: " + "[" * 200 + "]" * 200, 1, ["levels deep"]),
    ("a: " + "[" * 100_000, 1, ["levels deep"]),
    ("a: 1\n1: b\n", 2, ["a key must be a word"]),
    ("a: 1\n? [b]\n: c\n", 2, ["a key must be a word"]),
    ("a: 1\nb: [1, 2\nc: 3\n", 3, []),
    ("a: 1\n\tb: 2\n", 2, []),
    ("a: 1\nb: x\x07y\n", 2, ["control character"]),
    (b"a: 1\nb: \xff\xfe\n", 2, ["UTF-8"]),
    ("- a\n- b\n", 1, ["a list", "key: value"]),
    ("just text\n", 1, ["text"]),
    ("a: 1\n---\nb: 2\n", 2, []),
    ("a: " + "9" * 5000, 1, ["too large a number"]),
    ("a: " + "x" * FILE_BYTES_MAX, None, ["larger than"]),
]


@pytest.mark.parametrize(("data", "line", "words"), REFUSED, ids=[repr(r[0][:25]) for r in REFUSED])
def test_hostile_or_broken_file_is_refused_with_its_line(
    tmp_path: Path, data: str | bytes, line: int | None, words: list[str]
) -> None:
    """What is not plain mappings, lists and values is refused, and the line is named."""
    path = written(tmp_path, data)
    with pytest.raises(ConfigError) as caught:
        read_document(path)
    assert caught.value.file == (f"{path}:{line}" if line else str(path))
    for word in words:
        assert word in str(caught.value)


def test_missing_file_and_folder_are_told_apart(tmp_path: Path) -> None:
    """A missing file and a folder in its place each get a sentence of their own."""
    with pytest.raises(ConfigError, match="no such file"):
        read_document(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="folder"):
        read_document(tmp_path)


def test_words_mean_what_yaml_1_2_says(tmp_path: Path) -> None:
    """Numbers without a point are numbers, and YAML 1.1's surprises stay text."""
    text = "a: 3e-3\nb: no\nc: 12:30\nd: 0x10\ne: ~\nf: true\ng: '5'\nh: -7\ni: 1_000\nj: .5\nk:\n"
    text += "l: 2024-01-01\nm: .inf\n"
    assert read_document(written(tmp_path, text)).plain == {
        "a": 0.003,
        "b": "no",
        "c": "12:30",
        "d": "0x10",
        "e": None,
        "f": True,
        "g": "5",
        "h": -7,
        "i": "1_000",
        "j": 0.5,
        "k": None,
        "l": "2024-01-01",
        "m": ".inf",
    }


def test_lines_of_nested_keys_are_known(tmp_path: Path) -> None:
    """Every key path has its line; an unknown path gets the line of what it lies in."""
    document = read_document(written(tmp_path, "a:\n  b:\n    - 1\n    - c: 2\n"))
    assert document.place(("a", "b", 1, "c")).endswith(":4")
    assert document.place(("a", "b", 0)).endswith(":3")
    assert document.place(("a", "nothing")).endswith(":1")


def test_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    """An empty file is a mapping without keys, so that the missing keys are named."""
    assert read_document(written(tmp_path, "# nothing yet\n")).plain == {}


def test_depth_that_files_need_is_allowed(tmp_path: Path) -> None:
    """Nesting up to the bound is read."""
    text = "a: " + "[" * (DEPTH_MAX - 2) + "1" + "]" * (DEPTH_MAX - 2)
    assert read_document(written(tmp_path, text)).plain["a"]
