"""Commands that ask a coordinator, over real mutual TLS on loopback."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from fedtrain import coordinator
from fedtrain.cli import session
from fedtrain.wire.values import InviteOrder

RUN = "run: library-lm\ntask: {name: synthetic}\nrounds: {count: 3, steps: 1}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["site", "list"], "members"),
        (["site", "show", "north"], "role"),
        (["run", "list"], "runs"),
        (["run", "show", "library-lm"], "phase"),
        (["run", "rounds", "library-lm"], "rounds"),
        (["run", "pause", "library-lm"], "phase"),
        (["run", "resume", "library-lm"], "phase"),
        (["run", "stop", "library-lm"], "phase"),
        (["model", "list", "library-lm"], "models"),
    ],
)
def test_answer_is_a_table_or_one_document(
    fedtrain: Any, consortium: Path, words: list[str], key: str
) -> None:
    """The same answer comes as tables, or with `--json` as one document and nothing else."""
    as_json = fedtrain(*words, "--dir", consortium, "--json")
    assert (as_json.code, as_json.err) == (0, "") and key in as_json.document
    table = fedtrain(*words, "--dir", consortium)
    assert (table.code, table.err) == (0, "") and key in table.out


def test_run_file_reaches_the_coordinator(
    fedtrain: Any, consortium: Path, config: Path, answers: Any
) -> None:
    """`run start` sends the file's specification."""
    outcome = fedtrain("run", "start", config, "--dir", consortium, "--json")
    assert outcome.code == 0 and outcome.document["phase"] == "waiting"
    (spec,) = answers.asked
    assert (spec.run, spec.rounds, spec.codec_up) == ("library-lm", 3, "int8")


def test_check_tells_who_would_refuse(fedtrain: Any, consortium: Path, config: Path, answers: Any) -> None:
    """`run check` ends with 0 if all would take part, and with 3 and the clause if too few would."""
    assert fedtrain("run", "check", config, "--dir", consortium).code == 0
    answers.accepted = False
    outcome = fedtrain("run", "check", config, "--dir", consortium)
    assert outcome.code == 3 and "contract.runs" in outcome.out and "north" in outcome.out


def test_wrong_run_file_is_refused_before_anything_is_asked(
    fedtrain: Any, consortium: Path, config: Path, answers: Any
) -> None:
    """A mistake in the run file is told with line and key, and the coordinator hears nothing."""
    config.write_text(RUN.replace("count: 3", "count: 0"))
    outcome = fedtrain("run", "start", config, "--dir", consortium)
    assert outcome.code == 2 and f"{config}:3: rounds.count" in outcome.err and not answers.asked


def test_invite_is_one_line(fedtrain: Any, consortium: Path, answers: Any) -> None:
    """`site invite` prints the line to paste and nothing else, or a document that holds it."""
    assert fedtrain("site", "invite", "north", "--dir", consortium).out == "fedtrain1-line\n"
    assert answers.asked == [("operator", InviteOrder("north", "site", 72 * 3600))]
    outcome = fedtrain(
        "site", "invite", "eve", "--role", "auditor", "--valid", "10m", "--dir", consortium, "--json"
    )
    assert outcome.document == {"name": "eve", "role": "auditor", "valid_s": 600, "invite": "fedtrain1-line"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--role", "opertor"], ["--role", "'operator'", "auditor"]),
        (["--valid", "72"], ["--valid", "unit"]),
        (["--valid", "1s"], ["--valid", "from 1m"]),
    ],
)
def test_wrong_invite_option_is_named(
    fedtrain: Any, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    """A wrong option of `site invite` is named with what would be valid."""
    outcome = fedtrain("site", "invite", "north", *words, "--dir", tmp_path)
    assert outcome.code == 2 and all(word in outcome.err for word in told)


def test_coordinators_refusal_keeps_its_sentence_and_code(fedtrain: Any, consortium: Path) -> None:
    """What the coordinator refuses arrives as its own sentence and exit code."""
    outcome = fedtrain("run", "show", "other", "--dir", consortium)
    assert (outcome.code, outcome.out) == (3, "") and outcome.err == "fedtrain: there is no run other\n"


def test_foreign_text_cannot_steer_the_terminal(fedtrain: Any, consortium: Path) -> None:
    """Control characters in what others wrote are shown as escapes, in tables and in JSON."""
    table = fedtrain("run", "show", "library-lm", "--dir", consortium).out
    assert "\x1b" not in table and "\\x1b[2J\\r\\nname" in table
    as_json = fedtrain("run", "show", "library-lm", "--dir", consortium, "--json")
    assert "\x1b" not in as_json.out and as_json.document["reason"] == "evil \x1b[2J\r\nname"


def test_export_writes_what_was_promised(
    fedtrain: Any, consortium: Path, tmp_path: Path, answers: Any
) -> None:
    """`model export` writes the bytes, and prints the path and the model's digest."""
    out = tmp_path / "model.safetensors"
    outcome = fedtrain("model", "export", "library-lm", out, "--version", "3", "--dir", consortium, "--json")
    assert outcome.code == 0 and out.read_bytes() == answers.model
    assert (outcome.document["version"], outcome.document["model_digest"]) == (3, answers.model_digest)
    text = fedtrain("model", "export", "library-lm", out, "--dir", consortium).out
    assert str(out) in text and answers.model_digest in text


def test_export_of_other_bytes_leaves_nothing(
    fedtrain: Any, consortium: Path, tmp_path: Path, answers: Any
) -> None:
    """Bytes that do not fit the promised digest end with 5, and neither they nor a part of them stay."""
    answers.model_sha256 = "00" * 32
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model").write_bytes(b"before")
    outcome = fedtrain("model", "export", "library-lm", folder / "model", "--dir", consortium)
    assert outcome.code == 5 and "SHA-256" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["model"] and (
        folder / "model"
    ).read_bytes() == b"before"


def test_export_into_a_missing_folder_is_told(fedtrain: Any, consortium: Path, tmp_path: Path) -> None:
    """A folder that is not there is a sentence about the disk, not a bug."""
    outcome = fedtrain("model", "export", "library-lm", tmp_path / "no" / "model", "--dir", consortium)
    assert outcome.code == 1 and "cannot write" in outcome.err and "bug" not in outcome.err


@pytest.mark.parametrize(("name", "told"), [("hf", "not available"), ("pickle", "safetensors")])
def test_export_formats_are_named(fedtrain: Any, tmp_path: Path, name: str, told: str) -> None:
    """A format that this version does not write is refused with the one that it does."""
    outcome = fedtrain("model", "export", "library-lm", tmp_path / "m", "--format", name, "--dir", tmp_path)
    assert outcome.code == 2 and told in outcome.err


def test_unreachable_coordinator_says_who_how_long_and_what_to_check(
    fedtrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listening ends with 4: the address, how long it was tried, and what to check."""
    monkeypatch.setattr(session, "PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    coordinator.init(tmp_path / "hub", "test", f"127.0.0.1:{port}")
    outcome = fedtrain("run", "list", "--dir", tmp_path / "hub")
    assert outcome.code == 4
    assert f"127.0.0.1:{port}" in outcome.err and "tried for" in outcome.err and "check" in outcome.err


def test_coordinator_of_another_consortium_is_told(
    fedtrain: Any, consortium: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator under another authority ends with 4 and says that the certificate is the reason."""
    monkeypatch.setattr(session, "PATIENCE_S", 1.0)
    address = session.load_identity(consortium)[0].membership.address
    coordinator.init(tmp_path / "other", "other", address)
    outcome = fedtrain("run", "list", "--dir", tmp_path / "other")
    assert outcome.code == 4 and "certificate" in outcome.err and "authority" in outcome.err


def test_folder_of_nobody_is_told(fedtrain: Any, tmp_path: Path) -> None:
    """A folder that neither `join` nor `coordinator init` made says which command makes one."""
    outcome = fedtrain("run", "list", "--dir", tmp_path)
    assert outcome.code == 2 and "fedtrain join" in outcome.err
