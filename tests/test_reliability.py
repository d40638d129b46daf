"""The command `python -m benchmarks.reliability`, its jobs made up."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.reliability import __main__ as reliability


@pytest.mark.parametrize("failing", [[], ["adpsgd"]])
def test_soaking_that_finds_a_stall_is_in_the_table_and_fails(tmp_path, monkeypatch, failing):
    def soak(command, env, check):
        algo, topology, output = (command[command.index(f"--{name}") + 1] for name in ("algo", "topology", "output"))
        numbers = {"algo": algo, "topology": topology, "learners": 2, "cores": 2, "minutes": 0.1, "steps": 100}
        memory = {"resident_mb": [9.0, 8.0], "grown_mb": [0.1, 0.2], "shared_mb_first_last": [1.0, 1.0]}
        Path(output).write_text(json.dumps(numbers | memory | {"stalls": int(algo in failing)}))
        return SimpleNamespace(returncode=int(algo in failing))

    monkeypatch.setattr(reliability, "subprocess", SimpleNamespace(run=soak))
    monkeypatch.setattr(sys, "argv", ["reliability", "--only", "soak", "--learners", "2", "--results", str(tmp_path)])
    if failing:
        with pytest.raises(SystemExit, match="soaking failed: adpsgd with status 1"):
            reliability.main()
    else:
        reliability.main()
    rows = [line for line in (tmp_path / "soak.md").read_text().splitlines() if ", matching" in line]
    assert len(rows) == 2
    assert [row.split("|")[-2].strip() for row in rows] == ["0", str(len(failing))]
