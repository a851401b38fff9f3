"""Commands that need no coordinator, and what every command line has in common."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedtrain import __version__, cli
from fedtrain.cli import app, output
from fedtrain.errors import (
    ConfigError,
    FedtrainError,
    IntegrityError,
    LocalError,
    RefusedError,
    StorageError,
    UnreachableError,
)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a sentence"), 2),
        (RefusedError("a sentence"), 3),
        (UnreachableError("a sentence"), 4),
        (IntegrityError("a sentence"), 5),
        (StorageError("a sentence"), 1),
    ],
)
def test_error_is_one_sentence_and_its_exit_code(
    fedtrain: Any, monkeypatch: pytest.MonkeyPatch, error: FedtrainError, code: int
) -> None:
    """An error of the tree ends with its own code and one line, without a traceback."""
    raising(monkeypatch, error)
    outcome = fedtrain("run", "list")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", "fedtrain: a sentence\n")


@pytest.mark.parametrize("error", [LocalError("odd"), ZeroDivisionError("odd")])
def test_bug_is_called_a_bug(fedtrain: Any, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """What must not happen ends with 1, says that it is a bug, and names --debug; no traceback."""
    raising(monkeypatch, error)
    outcome = fedtrain("run", "list")
    assert outcome.code == 1 and "bug" in outcome.err and "--debug" in outcome.err
    assert "Traceback" not in outcome.err and len(outcome.err.splitlines()) == 1


def test_debug_shows_the_traceback_and_keeps_the_code(fedtrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--debug`, wherever it stands, adds the traceback and changes nothing else."""
    raising(monkeypatch, RefusedError("a sentence"))
    outcome = fedtrain("run", "list", "--debug")
    assert outcome.code == 3 and "Traceback" in outcome.err and "fedtrain: a sentence" in outcome.err


def test_interrupt_ends_with_130(fedtrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends with 130 and without a word."""
    raising(monkeypatch, KeyboardInterrupt())
    outcome = fedtrain("run", "list")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


def test_escapes_of_foreign_errors_do_not_reach_the_terminal(
    fedtrain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error's sentence may quote a stranger; its control characters are escaped."""
    raising(monkeypatch, RefusedError("\x1b]0;owned\x07 and\nmore"))
    assert fedtrain("run", "list").err == "fedtrain: \\x1b]0;owned\\x07 and\\nmore\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rnu"], "run"),
        (["run", "strat"], "start"),
        (["run", "list", "--jsno"], "--json"),
        (["run", "show"], "RUN"),
        (["coordinator", "init", "x"], "--name"),
        (["model", "export", "r", "o", "--version", "new"], "--version"),
    ],
)
def test_usage_error_ends_with_2_and_the_nearest_name(fedtrain: Any, words: list[str], told: str) -> None:
    """A slip in the command line ends with 2 and names what was probably meant."""
    outcome = fedtrain(*words)
    assert outcome.code == 2 and told in outcome.err and "Traceback" not in outcome.err


def test_version(fedtrain: Any) -> None:
    """`--version` prints the version."""
    outcome = fedtrain("--version")
    assert (outcome.code, outcome.out) == (0, f"fedtrain {__version__}\n")


def test_documented_commands_are_there(fedtrain: Any) -> None:
    """Every documented command of this version answers `--help`."""
    for words in (
        "demo",
        "coordinator init",
        "coordinator serve",
        "site invite",
        "site list",
        "site show",
        "join",
        "peer run",
        "trainer run",
        *(
            f"run {name}"
            for name in ["check", "start", "list", "show", "watch", "rounds", "pause", "resume", "stop"]
        ),
        "model list",
        "model export",
        "audit verify",
        "audit show",
    ):
        outcome = fedtrain(*words.split(), "--help")
        assert outcome.code == 0 and "Usage" in outcome.out, words


def test_join_leaves_a_valid_site_file_and_never_overwrites_one(
    fedtrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`join` writes a commented peer.yaml that loads; a second one leaves the owner's words alone."""
    from fedtrain import peer
    from fedtrain.config import load_peer
    from fedtrain.peer.joining import JoinReport

    def enrol(line: str, folder: Path) -> JoinReport:
        folder.mkdir(exist_ok=True)
        return JoinReport(folder, "test", "north", line, "127.0.0.1:7443", "ab" * 8, 0)

    monkeypatch.setattr(peer, "join", enrol)
    outcome = fedtrain("join", "site", tmp_path / "north")
    assert outcome.code == 0 and "as site north" in outcome.out and "peer run" in outcome.out
    file = tmp_path / "north" / "peer.yaml"
    config = load_peer(file)
    assert (config.site, config.coordinator) == ("north", "127.0.0.1:7443")
    file.write_text("mine")
    again = fedtrain("join", "site", tmp_path / "north")
    assert again.code == 0 and file.read_text() == "mine" and "left as it is" in again.err
    assert fedtrain("join", "auditor", tmp_path / "eve").code == 0
    assert not (tmp_path / "eve" / "peer.yaml").exists()


def test_agent_gets_the_site_file(fedtrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`peer run` hands the agent the whole site file in its own terms; `--once` goes with it."""
    from fedtrain import peer

    given: list[Any] = []
    monkeypatch.setattr(peer, "run", lambda settings, once: given.append((settings, once)))
    (tmp_path / "peer.yaml").write_text(
        "site: north\ncoordinator: 127.0.0.1:7443\nproxy: localhost:3128\n"
        "contract: {runs: [a], tasks: [t], gpu_hours_max: 5}\n"
    )
    assert fedtrain("peer", "run", tmp_path, "--once").code == 0
    ((settings, once),) = given
    assert once and settings.site == "north" and settings.proxy == "localhost:3128"
    assert settings.contract.runs == ("a",) and settings.state == tmp_path / "state"
    assert settings.contract.gpu_hours_max == 5 and settings.ledger == tmp_path / "state" / "ledger.sqlite"


def test_agent_without_site_file_is_told(fedtrain: Any, tmp_path: Path) -> None:
    """`peer run` on a folder without peer.yaml names the missing file."""
    outcome = fedtrain("peer", "run", tmp_path)
    assert outcome.code == 2 and "peer.yaml" in outcome.err


def test_coordinator_init_says_what_to_do_next(fedtrain: Any, tmp_path: Path) -> None:
    """`coordinator init` makes a consortium that the operator can use, and a second one is refused."""
    words = ("coordinator", "init", tmp_path / "hub", "--name", "test", "--address", "127.0.0.1:7443")
    outcome = fedtrain(*words)
    assert outcome.code == 0 and "coordinator serve" in outcome.out and "site invite" in outcome.out
    assert fedtrain(*words).code == 2


def test_trainer_refuses_a_wrong_site_file(fedtrain: Any, tmp_path: Path) -> None:
    """`trainer run` ends with 2 on a data file that is not there."""
    outcome = fedtrain("trainer", "run", tmp_path / "mailbox", "--data", tmp_path / "absent.yaml", "--once")
    assert outcome.code == 2 and "absent.yaml" in outcome.err


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedtrain.cli", *words]


def test_help_imports_nothing_heavy() -> None:
    """`fedtrain --help` works without pydantic, gRPC, numpy or torch being imported."""
    code = (
        "import sys; from fedtrain.cli import main; code = main(['--help']);"
        "heavy = {'pydantic', 'grpc', 'torch', 'numpy', 'yaml', 'cryptography'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); raise SystemExit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n") and "coordinator" in done.stdout


def test_real_process_ends_with_the_code_and_one_line(tmp_path: Path) -> None:
    """As a process too, a wrong file is one line on standard error and exit code 2."""
    done = subprocess.run(
        command("run", "check", str(tmp_path / "no.yaml")), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"fedtrain: {tmp_path / 'no.yaml'}: no such file: check the path\n"


def test_reader_that_goes_away_is_no_error() -> None:
    """Output into a pipe that nobody reads any more ends quietly."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = "from fedtrain.cli import output; output.say('x' * 100_000)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_render_shows_records_as_tables_and_the_rest_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Any document is readable: lists of records, records by name, sections, empty values, long lists."""
    document = {
        "run": "a",
        "paused": False,
        "nothing": None,
        "sites": {"north": {"answer": "refuses", "reasons": ["one", "two"]}},
        "rounds": [{"index": 1, "loss": 0.123456789}, {"index": 2, "late": ["x"]}],
        "model": {"digest": "ab", "layers": [[1]]},
    }
    output.emit(document, as_json=False)
    text = capsys.readouterr().out
    for part in ("north", "one, two", "0.123457", "index", "digest", "no", "[[1]]"):
        assert part in text
    output.emit(document, as_json=True)
    assert json.loads(capsys.readouterr().out) == document


def test_tables_are_for_people_and_json_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    """In a table the name comes first, moments are in UTC, digests are short; JSON keeps everything."""
    member = {"expires": "soon", "expires_ms": 1_795_000_000_000, "key": "ab" * 32, "name": "north"}
    document = {"members": [{**member, "since_ms": 1_700_000_000_000, "seats": {"a": {"standing": "lost"}}}]}
    output.emit(document, as_json=False)
    header, row = capsys.readouterr().out.splitlines()[1:]
    assert header.split() == ["name", "expires", "key", "since_ms", "seats"]
    assert row.split() == ["north", "soon", "abababababab...", "2023-11-14", "22:13:20", "a", "lost"]
    output.emit(document, as_json=True)
    assert json.loads(capsys.readouterr().out) == document
    assert output.utc(10**30) == f"{10**30} ms"


def test_main_is_the_package_entry_point() -> None:
    """The installed command is `fedtrain.cli:main`, which takes the process's own arguments by default."""
    assert cli.main.__defaults__ == (None,)
