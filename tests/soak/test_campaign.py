"""A slice of the reliability campaign (docs/reliability.md), as `make soak` runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("campaign.py")


@pytest.mark.slow
def test_two_minutes_of_kills_lose_nothing(tmp_path):
    command = [sys.executable, "-W", "ignore", str(SCRIPT), "--seconds=120", f"--folder={tmp_path}"]
    command += ["--jobs=saving,compare"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "campaign.jsonl").read_text().splitlines()]
    assert sum(row["event"] == "kill" for row in rows) >= 5
    compared = [row for row in rows if row["event"] == "compared"]
    assert compared
    assert all(row["equal"] and row["kept"] for row in compared)
