"""`make bench` can start. `make check` checks its types; a run takes 20 minutes and an engine."""

from pathlib import Path

import pytest

from bench.__main__ import main
from bench.cases import CASES
from bench.distant_vps import DistantVpsClient
from bench.lab import Lab


def test_help_names_every_case(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert ", ".join(CASES) in " ".join(capsys.readouterr().out.split())


def test_the_lab_builds_a_provider_and_measures_a_case(tmp_path: Path) -> None:
    lab = Lab(tmp_path, rounds=1)
    try:
        assert isinstance(lab.provider().vps_client, DistantVpsClient)
        assert [row.case for row in CASES["import"](lab)] == ["import …instance"]
    finally:
        lab.__exit__()
