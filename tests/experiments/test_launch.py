"""Bad input at the command line: one sentence on stderr, status 2, nothing half-written."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import _command

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
from ml_collections import config_dict
def get_config():
    return config_dict.ConfigDict({config!r})
"""


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)


@pytest.fixture
def config(tmp_path):
    """Writes a config file and returns its flag."""

    def write(**settings):
        path = tmp_path / "config.py"
        path.write_text(CONFIG.format(config=settings))
        return f"--config={path}"

    return write


def check(ran, *parts):
    assert ran.returncode == 2, ran.stderr
    sentence = ran.stderr.strip().splitlines()
    assert len(sentence) == 1, ran.stderr
    for part in parts:
        assert part in sentence[0]


def test_flags_and_settings_that_do_not_exist_name_the_nearest(config, tmp_path):
    work = f"--workdir={tmp_path / 'run'}"
    quick = "--config=configs/quickstart.py"
    check(launch(quick, f"--workdirr={tmp_path}"), "workdirr", "workdir")
    check(
        launch(quick, work, "--config.convert.optim.learning_rat=1"),
        "learning_rat is not",
        "convert.optim.learning_rate?",
    )
    check(launch(quick, work, "--config.convert.seeds=3"), "config.convert.seeds=3 is one number", "write (3,)")
    check(
        launch(quick, work, "--config.controls.random_weights=7"),
        "config.controls.random_weights=7 is not True or False",
    )
    check(
        launch(quick, work, "--config.benchmark.tasks=('OfflineLeeST',)"), "'OfflineLeeST': did you mean OfflineLeeSTS?"
    )
    check(launch(quick, work, "--config.convert.recipe.steps", "3"), "3 steps with warmup_steps=5")
    check(
        launch(quick, work, "--config.convert.recipe.steps=many"),
        "config.convert.recipe.steps=many is not a whole number",
    )
    check(launch(quick, work, "--config.label.x=3"), "config.label is one setting, not a group")
    check(launch("--config=configs/quickstar.py", work), "configs/quickstar.py", "cannot be loaded")
    check(launch("--config", "configs/quickstar.py", work, "--config.base=x"), "'configs/quickstar.py'", "no such file")
    check(launch(quick), "--workdir")
    check(launch(quick, "--workdir=gs://bucket/run"), "gs://bucket/run is not a folder")
    check(launch(quick, work, "extra"), "unexpected argument 'extra'")
    check(launch(config(experiment="studi"), work), "config.experiment='studi'", "study")
    check(launch(config(experiment="study", base="x", convrt={}), work), "config.convrt", "config.convert")
    check(launch(quick, work, "--process_id=1"), "--coordinator", "give all three")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written_and_a_model_that_is_not_there(tmp_path):
    (tmp_path / "file").write_text("")
    check(
        launch("--config=configs/quickstart.py", f"--workdir={tmp_path / 'file' / 'run'}"), "is a file: give a folder"
    )
    ran = launch("--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}", "--config.base=no/such-model")
    check(ran, "error: no/such-model", "HF_HUB_OFFLINE=1")
    assert not (tmp_path / "run").exists()


def test_a_fault_in_a_config_file_is_told_by_its_line(tmp_path):
    work = f"--workdir={tmp_path / 'run'}"
    check(launch("--config=configs/replication.py:sfft", work), "no variant 'sfft': it is one of sft, rlvr, sft_full")
    for body, said in (("return missing", "NameError"), ("return {}['x']", "KeyError"), ("return (1).x", "Attribute")):
        (tmp_path / "mine.py").write_text(f"def get_config():\n    {body}\n")
        check(launch(f"--config={tmp_path / 'mine.py'}", work), "mine.py line 2: ", said)


def test_help_is_no_failure():
    ran = launch("--help")
    assert ran.returncode == 0
    assert "Exit status" in ran.stdout


@pytest.mark.parametrize("workdir", [["--workdir=runs/a b"], ["--workdir", "runs/a b"], ["-workdir=x"]])
def test_the_command_to_repeat_a_run_is_one_that_a_shell_takes(monkeypatch, workdir):
    given = ["--config=my configs/pair.py", "--config.convert.seeds=(0, 1)", "--verbosity=-1"]
    monkeypatch.setattr(sys, "argv", ["launch.py", given[0], *workdir, *given[1:]])
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {_command()}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines() == ["python", "launch.py", *given, "--workdir=NEW_FOLDER"]


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--config=configs/report.py", "--config=configs/report.py"),
        ("--config.studies=('a b','c')", "\"--config.studies=('a b','c')\""),
        ("--config.label=it's $HOME", "'--config.label=it'\"'\"'s $HOME'"),
    ],
)
def test_the_command_to_repeat_is_what_a_shell_reads_back(argument, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch.py", argument, "--workdir", "runs/x"])
    command = _command()
    assert command == f"python launch.py {shown} --workdir=NEW_FOLDER"
    assert shlex.split(command) == ["python", "launch.py", argument, "--workdir=NEW_FOLDER"]
