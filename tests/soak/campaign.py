"""Kills runs at random moments with SIGKILL, continues them, and compares what they end with to runs left alone.

    python tests/soak/campaign.py --seconds=900 --folder=runs/soak

Every job (jobs.py) is first run to its end twice, which gives its numbers, shows that they repeat themselves, and how
long it takes once its programs are compiled. Then, round after round, a fresh workdir is killed several times, each
time at a moment drawn from when the process began to write there, continued to its end and compared. Every kill and
every comparison is a line of <folder>/campaign.jsonl.

Runs are processes of their own, forked from this one after its imports (which take longer than the jobs): a kill hits
the work and not the imports. A folder of an earlier campaign is continued. The exit status is 1 when a run failed, lost
a finished stage or a checkpoint, or ended otherwise than its reference.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from jobs import Job, facts, jobs

LIMIT = 900.0  # seconds after which a run that should end counts as hung


def start(program: Callable[[], None], output: Path) -> int:
    """Forks a process that runs `program` with its output in a file; its pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setpgid(0, 0)
        with output.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        program()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """The exit status (negative: the signal), or None when the process still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(min(0.01, max(deadline - time.monotonic(), 0.0)))


def where(workdir: Path) -> str:
    """The stage that was cut off, and whether a checkpoint was being written."""
    if not workdir.exists() or not any(workdir.iterdir()):
        return "before the workdir"
    open_stages = [
        path.parent for path in workdir.glob("stages/**/inputs.json") if not (path.parent / "done.json").exists()
    ]
    saving = any("tmp" in path.name for path in workdir.rglob("checkpoints/*"))
    name = str(open_stages[0].relative_to(workdir / "stages")) if open_stages else "between stages"
    return name + (", inside a save" if saving else "")


def held(workdir: Path) -> dict[str, int]:
    """What no later start may lose: finished stages (when), newest complete checkpoints (step)."""
    found = {str(path): path.stat().st_mtime_ns for path in workdir.glob("stages/**/done.json")}
    for folder in workdir.rglob("checkpoints"):
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if steps and not (folder.parent / "done.json").exists():
            found[str(folder)] = max(steps)
    return found


def kept(before: dict[str, int], workdir: Path) -> bool:
    """Whether all of that is there: no stage made again, no checkpoint older (a finished stage's may be cleared)."""
    now = held(workdir)
    for name, value in before.items():
        if name.endswith("done.json"):
            if now.get(name) != value:
                return False
        elif not (Path(name).parent / "done.json").exists() and now.get(name, -1) < value:
            return False
    return True


class Campaign:
    """The jobs' references, then rounds of kills; see the module's text."""

    def __init__(self, folder: Path, seed: int, names: list[str] | None):
        self.folder, self.seed = folder, seed
        self.log = folder / "campaign.jsonl"
        every = jobs(folder)
        self.jobs = {name: every[name] for name in names or every}
        self.seconds: dict[str, float] = {}
        self.references: dict[str, dict[str, str]] = {}
        self.failures = 0
        self.kills = sum(row["event"] == "kill" for row in self.rows())

    def write(self, **row: Any) -> None:
        """One line of the log, and of the terminal."""
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """The log's rows so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def finish(self, job: Job, workdir: Path) -> tuple[int | None, float]:
        """Runs to the end; the exit status and the seconds."""
        began = time.monotonic()
        pid = start(lambda: job.program(workdir), workdir.with_suffix(".log"))
        status = wait(pid, LIMIT)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return status, time.monotonic() - began

    def reference(self, job: Job) -> None:
        """Two runs left alone: what the job ends with, how long it takes once its programs are compiled."""
        if job.name in self.references:
            return
        whole = self.folder / f"{job.name}.whole"
        earlier = [row for row in self.rows() if row["event"] == "reference" and row["job"] == job.name]
        if not earlier:
            self.fresh(whole.name)
            self._alone(job, whole)  # compiles
        warm = self.fresh(f"{job.name}.warm")
        self.seconds[job.name] = self._alone(job, warm)
        self.references[job.name] = facts(whole)
        equal = facts(warm) == self.references[job.name]
        self.failures += not equal
        row = {"seconds": round(self.seconds[job.name], 2), "files": len(self.references[job.name])}
        self.write(event="reference", job=job.name, equal=equal, **row)

    def _alone(self, job: Job, workdir: Path) -> float:
        status, seconds = self.finish(job, workdir)
        if status != 0:
            raise SystemExit(f"{job.name} left alone ended with {status}: {workdir.with_suffix('.log')}")
        return seconds

    def fresh(self, name: str) -> Path:
        workdir = self.folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        return workdir

    def kill(self, job: Job, workdir: Path, number: int, random: np.random.Generator) -> bool:
        """One process, killed at a random moment of the job's length; False when it ended before."""
        share = 0.7 if job.kills < 10 else 3.0 / job.kills  # many kills: each early, or the job ends before the last
        moment = float(random.uniform(0.0, self.seconds[job.name] * share))
        before = held(workdir)
        pid = start(lambda: job.program(workdir), workdir.with_suffix(".log"))
        status = self.until_it_writes(pid, workdir)
        status = wait(pid, moment) if status is None else status
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = wait(pid, 60.0)
        hit = status == -signal.SIGKILL
        self.kills += hit
        whole = kept(before, workdir)
        row = {"job": job.name, "number": number, "moment": round(moment, 3), "status": status}
        self.write(event="kill" if hit else "ended", **row, where=where(workdir), kept=whole, kills=self.kills)
        if not whole or (not hit and status != 0):
            self.failures += 1
        return hit

    def until_it_writes(self, pid: int, workdir: Path) -> int | None:
        """Returns when the process wrote its first line or the manifest (None), or its exit status if it ended."""
        watched, began = [workdir / "log.txt", workdir / "manifest.json"], time.time_ns()
        deadline, status = time.monotonic() + LIMIT, None
        while status is None and time.monotonic() < deadline:
            if any(path.exists() and path.stat().st_mtime_ns >= began for path in watched):
                break
            status = wait(pid, 0.01)
        return status

    def round(self, number: int, until: float) -> None:
        """Every job once: a fresh workdir, its kills, the run to the end, the comparison."""
        for position, name in enumerate(rota(list(self.jobs))):
            job = self.jobs[name]
            self.reference(job)
            if time.monotonic() > until:
                return
            random = np.random.default_rng([self.seed, number, position])
            workdir, hits = self.fresh(f"{job.name}.cut"), 0
            for attempt in range(job.kills):
                if not self.kill(job, workdir, attempt, random):
                    break
                hits += 1
            before = held(workdir)
            status, seconds = self.finish(job, workdir)
            whole = kept(before, workdir)
            found = facts(workdir) if status == 0 else {}
            reference = self.references[job.name]
            other = sorted(name for name in {*found, *reference} if found.get(name) != reference.get(name))
            good = status == 0 and not other and whole
            row = {"job": job.name, "round": number, "kills": hits, "status": status, "seconds": round(seconds, 2)}
            self.write(event="compared", **row, kept=whole, equal=not other, differing=other[:5])
            if not good:
                self.failures += 1
                shutil.copytree(workdir, self.fresh(f"{job.name}.failed{number}"))
                shutil.copy(workdir.with_suffix(".log"), self.folder / f"{job.name}.failed{number}.log")


def rota(names: list[str]) -> list[str]:
    """The jobs of one round: the cheap saving loop comes again after every other one."""
    others = [name for name in names if name != "saving"]
    return [name for other in others for name in ("saving", other)] if others and "saving" in names else names


def prepare(folder: Path) -> None:
    """Files of the jobs (in a process of its own: this one must not start JAX) and the imports that runs share."""
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    folder.mkdir(parents=True, exist_ok=True)
    if wait(start(lambda: jobs(folder) and None, folder / "prepare.log"), LIMIT) != 0:
        raise SystemExit(f"the jobs' files could not be made: {folder / 'prepare.log'}")
    import mteb  # noqa: F401
    import saving  # noqa: F401
    import tensorboardX  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401

    import experiments.compare
    import experiments.convert
    import experiments.evaluate
    import experiments.study
    import experiments.tune  # noqa: F401
    import launch  # noqa: F401


def summary(log: Path) -> str:
    """A markdown table of a campaign's log: a row for each job."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    lines = ["| job | kills | of them inside a save | runs ended and compared | equal | length left alone |"]
    lines.append("|---|---|---|---|---|---|")
    total = [0, 0, 0, 0]
    for name in dict.fromkeys(row["job"] for row in rows):
        mine = [row for row in rows if row["job"] == name]
        kills = [row for row in mine if row["event"] == "kill" and row["where"] != "before the workdir"]
        compared = [row for row in mine if row["event"] == "compared" and row["kills"]]
        inside = sum("inside a save" in row["where"] for row in kills)
        equal = sum(row["equal"] and row["kept"] and row["status"] == 0 for row in compared)
        seconds = next((f"{row['seconds']:.0f} s" for row in reversed(mine) if row["event"] == "reference"), "")
        counts = [len(kills), inside, len(compared), equal]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {seconds} |")
    lines.append(f"| **all** | {' | '.join(f'**{count}**' for count in total)} | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills runs at random moments and compares what they end with.")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", default="", help="names, with commas between; all by default")
    parser.add_argument("--summary", action="store_true", help="only prints the table of an earlier campaign")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    if asked.summary:
        print(summary(folder / "campaign.jsonl"))
        return 0
    until = time.monotonic() + asked.seconds
    prepare(folder)
    try:
        campaign = Campaign(folder, asked.seed, [name for name in asked.jobs.split(",") if name])
    except KeyError as error:
        parser.error(f"there is no job {error}")
    number = len(campaign.rows())  # another draw than an earlier campaign in this folder
    while time.monotonic() < until:
        campaign.round(number, until)
        number += 1
    print(summary(campaign.log))
    print(f"{campaign.kills} kills, {campaign.failures} failures")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
