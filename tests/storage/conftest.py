"""An empty blob folder for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtrain.storage.blobs import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    """With no space kept free."""
    return Blobs(tmp_path / "blobs", free_bytes_min=0)
