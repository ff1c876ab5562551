"""Full disks, jumping clocks, damaged files, a hub that goes away: every row of faults.py ends as it should."""

import subprocess
import sys
from pathlib import Path

import pytest

from hrsa_jax.models import source
from hrsa_jax.runtime.errors import InputError

SOAK = Path(__file__).resolve().parent


@pytest.mark.slow
def test_every_fault_is_one_sentence_and_the_same_command_ends_as_if_nothing_had_been(tmp_path):
    command = [sys.executable, "-W", "ignore", str(SOAK / "faults.py"), f"--folder={tmp_path / 'faults'}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_an_answer_that_is_not_the_hubs_is_one_sentence(monkeypatch):
    def proxy(*_, **__):
        raise TypeError("string indices must be integers,\nnot 'str'")

    monkeypatch.setattr("huggingface_hub.snapshot_download", proxy)
    with pytest.raises(InputError, match=r"^someone/some-model could not be fetched from the hub \(TypeError: [^\n]*$"):
        source.resolve("someone/some-model")
