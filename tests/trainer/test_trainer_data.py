"""The site's data: what loaders read, what they refuse, and in which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedtrain.errors import ConfigError, RefusedError
from fedtrain.trainer.data import DataSource, read_datasets
from fedtrain.trainer.library import library_documents

PEERS = Path(__file__).parents[2] / "peers"


def source(folder: Path, text: str, name: str = "corpus", task: str = "causal_lm") -> DataSource:
    """The data of a peer.yaml with this text under `datasets`."""
    file = folder / "peer.yaml"
    file.write_text("site: x\ndatasets:\n" + text)
    return DataSource(name, task, read_datasets(file))


def entry(path: str, more: str = "rights: {execute: [causal_lm]}", form: str = "text") -> str:
    """One data set called corpus."""
    return f"  corpus: {{path: {path}, format: {form}, {more}}}\n"


def test_text_files_come_sorted_and_once(tmp_path):
    """Patterns may overlap and be relative to peer.yaml; each file is read once, in order of its path."""
    (tmp_path / "sub").mkdir()
    for name, text in (("b.txt", "two"), ("sub/c.txt", "thrée"), ("a.txt", "one"), ("empty.txt", "")):
        (tmp_path / name).write_text(text)
    data = source(tmp_path, entry('["*.txt", "**/*.txt"]'))
    assert list(data.documents()) == [b"one", b"two", "thrée".encode()]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (entry("nothing/*.md"), "no file matches"),
        (entry("empty.txt"), "is empty"),
        (entry("latin.txt"), "is not UTF-8 text (byte 3)"),
        (entry("[nosuchmodule]", form="python-library"), "no Python source of a module 'nosuchmodule'"),
        (entry("[math]", form="python-library"), "no Python source of a module 'math'"),
        (entry('["nosuch*"]', form="python-library"), "matches nosuch*"),
        ("  corpora: {path: empty.txt}\n", "did you mean 'corpora'?"),
    ],
)
def test_unreadable_data_is_said_with_its_name_and_what_was_looked_at(tmp_path, text, sentence):
    """Missing, empty and foreign data are sentences that name data set and pattern."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("grün und größer".encode("latin-1").replace(b"r", b"rx", 1))
    with pytest.raises(ConfigError) as caught:
        list(source(tmp_path, text).documents())
    assert sentence in str(caught.value) and "corpus" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (entry("a.txt", form="parquett"), "datasets.corpus.format: 'parquett' is not a choice here"),
        (entry("a.txt", "licens: x"), "datasets.corpus.licens: unknown key; did you mean 'licence'?"),
        (
            entry("a.txt", "rights: {exec: [a]}"),
            "corpus.rights.exec: unknown key; did you mean 'execute'?",
        ),
        ("  corpus: {format: text}\n", "datasets.corpus.path: is required"),
        ("  corpus: [1]\n", "datasets.corpus: expected a mapping"),
        ("  - corpus\n", "datasets: expected a mapping"),
        ("  corpus: {path: [\n", "not valid YAML"),
    ],
)
def test_slips_in_the_datasets_section_are_named_by_their_key(tmp_path, text, sentence):
    """A wrong key, type or format is refused with file, key and the nearest valid one."""
    with pytest.raises(ConfigError) as caught:
        source(tmp_path, text)
    assert sentence in str(caught.value) and "peer.yaml" in str(caught.value)


def test_data_are_not_opened_for_a_task_without_the_right(tmp_path):
    """`rights.execute` is held against the task by the process that sees the data, too."""
    (tmp_path / "a.txt").write_text("text")
    data = source(tmp_path, entry("a.txt", "rights: {execute: [another]}"))
    with pytest.raises(RefusedError, match=r"does not allow the task 'causal_lm'.*names another"):
        next(data.documents())


def test_library_text_is_read_without_importing_it():
    """Sources of modules, packages and the topics' dictionary are read; none of them gets imported."""
    script = (
        "import sys; from pathlib import Path\n"
        "from fedtrain.trainer.library import library_documents as read\n"
        "texts = list(read(('pydoc_data.topics', 'wsgiref', 'ftplib'), Path()))\n"
        "assert not {'pydoc_data', 'wsgiref', 'ftplib'} & set(sys.modules), 'imported'\n"
        "assert any(b'The \"assert\" statement' in text for text in texts)\n"
        "assert any(b'class FTP:' in text for text in texts)\n"
        "assert any(b'class SimpleHandler' in text for text in texts)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PEERS.parent, timeout=60)


def test_a_pattern_may_match_nothing_beside_names_that_do():
    """A module that only some versions of Python have is named as a pattern and may be absent."""
    with_pattern = list(library_documents(("bisect", "_no_such_module*"), Path()))
    assert with_pattern == list(library_documents(("bisect",), Path()))
    assert b"def bisect_left" in with_pattern[0]


@pytest.mark.parametrize("name", ["reference", "network", "numeric"])
def test_the_example_sites_have_text_that_no_other_has(name):
    """Each example site yields at least 300 kB, and shares no document with another site."""
    texts = {}
    for site in ("reference", "network", "numeric"):
        datasets = read_datasets(PEERS / site / "peer.yaml")
        texts[site] = set(DataSource("corpus", "causal_lm", datasets).documents())
    assert sum(map(len, texts[name])) > 300_000
    others = set().union(*(found for site, found in texts.items() if site != name))
    assert not {text for text in texts[name] & others if len(text) > 500}
