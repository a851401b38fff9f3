"""`pytest tests/scenarios --rewrite` writes the answers of every scenario anew, to be read in the diff."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The machine's vocabulary (a run of three sites, an effect as one line) is shared with tests/core.
sys.path.append(str(Path(__file__).resolve().parents[1] / "core"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The one option of this room."""
    parser.addoption("--rewrite", action="store_true", help="write the answers of the scenarios anew")
