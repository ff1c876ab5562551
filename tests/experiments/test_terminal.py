"""What a user sees, without a model: widths, bars, verbosity, and where the messages of libraries go.

The same checks over a whole study, on a terminal and piped, are in test_study.py.
"""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import faults, in_terminal, shown

from experiments.announce import _cost, closing, opening
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.workdir import Workdir

ROOT = Path(__file__).resolve().parents[2]

# A run as launch.py makes one, whose "libraries" print in every way there is.
NOISY = """
import ctypes, logging, os, subprocess, sys, time, warnings
from pathlib import Path
from hrsa_jax.runtime import noise
from hrsa_jax.runtime.logging import RunLog
noise.set_verbosity(int(sys.argv[2]))
with noise.caught():
    warnings.warn("a python warning before the folder is open")
    print("a library on stdout")
    log = RunLog(Path(sys.argv[1]), primary=True)
    log.line("the run itself, in a line of words that is a good deal longer than eighty columns, so it is broken")
    with log.progress("work", 40) as progress:
        for number in range(40):
            if number == 20:
                log.line("a line in the middle of a bar")
                logging.getLogger("mteb").warning("a logged warning")
                os.write(2, b"E0000 00:00:00 a C++ message\\n")
            time.sleep(0.02)
            progress.update(1, "loss 0.1, and a note that would be far too long for what is left of a bar")
    subprocess.run(["sh", "-c", "echo a child process >&2"], check=True)
    log.result("the result")
    if len(sys.argv) > 3:
        raise RuntimeError("a fault of our own")
print("printed on leaving")
"""


@pytest.fixture
def noisy(tmp_path):
    """Runs NOISY on a terminal or piped; returns (status, what is seen, log.txt)."""
    (tmp_path / "noisy.py").write_text(NOISY)

    def run(*, terminal, verbosity=0, fail=False, **environment):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        command = [sys.executable, str(tmp_path / "noisy.py"), str(folder), str(verbosity), *(["fail"] * fail)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        seen = tmp_path / "seen"
        if terminal:
            status = in_terminal(command, cwd=ROOT, env=env, log=seen)
        else:
            with seen.open("w") as file:
                status = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=file, check=False).returncode
        return status, seen.read_bytes().decode(), (folder / "log.txt").read_text()

    return run


SAID = (
    *("a python warning", "a library on stdout", "a logged warning", "a C++ message", "a child process"),
    "printed on leaving",
)


def test_piped_only_our_lines_are_seen_and_the_log_has_the_rest(noisy):
    status, seen, log = noisy(terminal=False)
    assert status == 0
    assert faults(seen, terminal=False) == []
    lines = seen.splitlines()
    assert lines[0].startswith("the run itself")
    assert lines[1].startswith("  ")  # broken between words, continued further in
    assert "a line in the middle of a bar" in lines
    assert lines[-1] == "the result"
    assert any(line.startswith("  work: 40/40 in ") for line in lines)
    assert not any(text in seen for text in SAID)
    assert all(text in log for text in (*SAID, "the run itself", "the result", "work: 40/40"))


def test_on_a_terminal_the_bar_is_redrawn_in_place_and_leaves_nothing(noisy):
    status, seen, _ = noisy(terminal=True)
    assert status == 0
    assert faults(seen, terminal=True) == []
    assert seen.count("\r  work ") > 3
    assert "[####" in seen
    assert "about" in seen
    lines = shown(seen)
    assert not any("[#" in line for line in lines)
    assert "a line in the middle of a bar" in lines
    assert not any(text in seen for text in SAID)


def test_verbosity_and_errors(noisy):
    status, seen, log = noisy(terminal=False, verbosity=-1, fail=True)
    assert status == 1
    assert seen.startswith("the result\nTraceback")  # results and failures, nothing else; the traceback is not lost
    assert "a fault of our own" in seen
    assert "the run itself" in log


def test_results_go_to_stdout_and_all_else_to_stderr(noisy, tmp_path):
    noisy(terminal=False)  # writes the program
    (tmp_path / "apart").mkdir()
    command = [sys.executable, str(tmp_path / "noisy.py"), str(tmp_path / "apart"), "0"]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "the result\n"
    assert "the run itself" in ran.stderr


WAITING = """
import sys, time
from pathlib import Path
from hrsa_jax.runtime import noise
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.processes import sigterm_ends
with noise.caught(), sigterm_ends():
    RunLog(Path(sys.argv[1]), primary=True).line("waiting")
    try:
        time.sleep(60)
    except BaseException:
        print("not an exception, which a callback could lose")
"""


def test_sigterm_ends_a_run_with_a_sentence_that_the_log_keeps(tmp_path):
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.read() == "stopped by SIGTERM: run the same command again to continue\n"
    assert process.wait() == 143
    assert (tmp_path / "log.txt").read_text().endswith("stopped by SIGTERM: run the same command again to continue\n")


def test_the_opening_says_what_where_and_how_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HRSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = ["tune", "convert/a", "convert/b"]

    def run(folder):
        stream = io.StringIO()
        with Workdir(tmp_path / folder, {"x": 1}) as workdir:
            log = RunLog(workdir.path, stream=stream)
            opening(log, workdir, "study: " + "many words " * 12, stages=names, command="--config=configs/none.py")
            for name in names:
                with workdir.stage(name, {}) as stage:
                    if not stage.done:
                        stage.complete(None)
            closing(log, workdir, 3661.0, files={"results": workdir.path / "results.json"})
        assert faults(stream.getvalue(), terminal=False) == []
        return stream.getvalue()

    first = run("one")
    assert "stages   3: tune, convert (2)" in first
    assert "not known: never finished" in first
    assert f"workdir  {Path('one')}" in first
    assert "[2/3]  convert/a" in first
    assert "this command" in first
    assert "1 h 1 min" in first
    again, elsewhere = run("one"), run("two")
    assert "every stage was finished here before" in again
    assert "[kept] done before, not run again: tune, convert (2)" in again
    assert "the last time with these settings" in elsewhere
    assert "to the end" in elsewhere


def test_the_cost_of_a_config_is_its_docstrings_own(tmp_path):
    written = tmp_path / "mine.py"
    written.write_text('"""A study.\n\nCost: 10 to 12 minutes and\n5 GB of memory. A demonstration.\n"""\n')
    assert (
        _cost(f"python launch.py --config={written} --workdir=x")
        == "10 to 12 minutes and 5 GB of memory (says mine.py)"
    )
    assert _cost("python launch.py --config=configs/quickstart.py").endswith("(says quickstart.py)")
    assert _cost("python launch.py --config=configs/gone.py") == ""
    written.write_text('"""A study.\n\nCost: with the settings below, 4 GB of memory.\n"""\n')
    assert _cost(f"python launch.py --config={written}") == ""  # no time is said


RUNNABLE = [path for path in sorted((ROOT / "configs").glob("*.py")) if "def get_config" in path.read_text()]


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_every_config_says_what_it_costs_in_a_whole_sentence(path):
    said = _cost(f"python launch.py --config={path} --workdir=x")
    assert said.endswith(f" (says {path.name})"), "the docstring needs a sentence that begins with Cost: and has a time"
    assert said.startswith(("about ", "seconds", "estimated, not measured, ", "a GPU-hour")) or said[0].isdigit()
    assert said.count("(") == said.count(")")


def test_a_full_disk_stops_no_line(tmp_path):
    stream = io.StringIO()
    log = RunLog(tmp_path, stream=stream)
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()  # cannot be appended to
    log.line("said all the same")
    assert "said all the same" in stream.getvalue()
