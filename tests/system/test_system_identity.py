"""Identities that change while real processes train: nobody loses a round but the site that is revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import renewal


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_renewals_roll_over_and_revocation_cost_no_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run goes on while short certificates are renewed, the authority changes and a site is revoked."""
    code = renewal.measure(tmp_path, renewal.QUICK)
    told = capsys.readouterr()
    assert code == 0, told.out + told.err
    assert '"failed": []' in told.out
