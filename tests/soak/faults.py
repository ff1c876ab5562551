"""Does to a run what machines and people do, and prints what it said and how it went on, as a table.

    python tests/soak/faults.py --folder=runs/faults

The run is a conversion of a model of a few kilobytes, through launch.py's main. After every fault its cause is taken
away, the same command is given again, and the end is compared to a run left alone. The exit status is 1 when a fault
ended otherwise than its row says. Faults that need `mount` are left out, and said so, where it is not allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import HTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from campaign import LIMIT, prepare, start, wait
from jobs import CONFIG, ROOT, _Launch, facts
from surroundings import CutHub, jump_clock, mounted

RECIPE = {"steps": 8, "hard_negatives": 1, "batch_size": 4, "row_length": 64, "dtype": "float32"}


@dataclass(frozen=True)
class Seen:
    """One row of the table. good: it ended as it should."""

    fault: str
    said: str
    then: str
    good: bool


class Faults:
    """Every fault is a method that gives a row, or None where it cannot be tried."""

    def __init__(self, folder: Path):
        self.folder = folder
        convert = {"files": ({"path": str(folder / "pairs.jsonl")},), "recipe": RECIPE, "checkpoint_every": 1}
        convert |= {"optim": {"learning_rate": 1e-3, "warmup_steps": 1}, "lora": {"rank": 2, "alpha": 4.0}}
        config = {"experiment": "convert", "backbone": {"source": str(folder / "model")}, "convert": convert}
        (folder / "faults.py").write_text(CONFIG.format(config=config))
        self.program = _Launch(str(folder / "faults.py"))
        status, said = self.run("whole")
        if status != 0:
            raise SystemExit(f"the run left alone ended with {status}: {said}")
        self.whole = facts(folder / "whole")

    def begin(self, name: str, before: Callable[[], object] = lambda: None) -> int:
        """A process that runs in workdir `name`, after `before`; what it says goes to <name>.log."""
        workdir, log = self.folder / name, self.folder / f"{name.replace('/', '.')}.log"
        log.unlink(missing_ok=True)

        def program() -> None:
            before()
            self.program(workdir)

        return start(program, log)

    def end(self, name: str, pid: int) -> tuple[int | None, str]:
        """Exit status, and the last line it said."""
        status = wait(pid, LIMIT)
        lines = (self.folder / f"{name.replace('/', '.')}.log").read_text().strip().splitlines()
        return status, lines[-1].strip() if lines else ""

    def run(self, name: str, before: Callable[[], object] = lambda: None) -> tuple[int | None, str]:
        """`begin` and `end`."""
        return self.end(name, self.begin(name, before))

    def equal(self, name: str) -> bool:
        """Whether the same command ends there with status 0 and the numbers of the run left alone."""
        return self.run(name)[0] == 0 and facts(self.folder / name) == self.whole

    def row(self, fault: str, ended: tuple[int | None, str], expected: str, status: int, name: str) -> Seen:
        """A fault that stops the run with `status` and a sentence that holds `expected`, and then is mended."""
        found, said = ended
        equal = self.equal(name)
        then = "the same command ends as a run left alone" if equal else "NOT as a run left alone"
        good = found == status and re.search(expected, said) is not None and equal
        return Seen(fault, f"{self._shown(said)} (status {found})", then, good)

    def _shown(self, said: str) -> str:
        return said.replace(str(self.folder) + "/", "").replace("|", "\\|")[:400]

    def until(self, condition: Callable[[], bool], pid: int) -> None:
        """Waits for `condition` while the process lives."""
        deadline = time.monotonic() + LIMIT
        while not condition() and time.monotonic() < deadline and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.005)

    def steps(self, name: str) -> int:
        """Steps that the run has logged."""
        path = self.folder / name / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    # ---- the disk ------------------------------------------------------------------------------------------------

    def full_disk(self) -> Seen | None:
        disk = self.folder / "disk"
        with mounted(disk, "size=300k") as can:
            if not can:
                return None
            ended = self.run("disk/run")
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            return self.row("the disk is full (300 KB of tmpfs)", ended, "No space left on device", 2, "disk/run")

    def read_only_disk(self) -> Seen | None:
        disk = self.folder / "disk"
        with mounted(disk, "size=100m,ro") as can:
            if not can:
                return None
            ended = self.run("disk/run")
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            return self.row(
                "the workdir is read-only", ended, "cannot be written .Read-only file system", 2, "disk/run"
            )

    def file_size_limit(self) -> Seen:
        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

        ended = self.run("limited", limited)
        return self.row("no file may pass 20 KB (ulimit -f)", ended, "File too large", 2, "limited")

    # ---- the clock and signals -----------------------------------------------------------------------------------

    def clock(self) -> Seen:
        # Orbax measures how long a save takes by the wall clock; its limit is 20 minutes.
        ended = self.run("clock", jump_clock)
        return self.row("the clock jumps three years on and back during a save", ended, "timed out", 2, "clock")

    def sigterm(self) -> Seen:
        pid = self.begin("sigterm")
        self.until(lambda: self.steps("sigterm") >= 2, pid)
        os.kill(pid, signal.SIGTERM)
        ended = self.end("sigterm", pid)
        return self.row("SIGTERM while it trains", ended, "stopped after step .* checkpoint is saved", 143, "sigterm")

    def two_runs(self) -> Seen:
        pid = self.begin("shared")
        self.until(lambda: (self.folder / "shared" / "manifest.json").exists(), pid)
        second = start(lambda: self.program(self.folder / "shared"), self.folder / "second.log")
        found = wait(second, LIMIT)
        said = (self.folder / "second.log").read_text().strip().splitlines()[-1]
        first, _ = self.end("shared", pid)
        equal = first == 0 and facts(self.folder / "shared") == self.whole
        good = found == 2 and f"is in use by process {pid}" in said and equal
        then = "the first ends as a run left alone" if equal else "the first is DISTURBED"
        return Seen("a second run in the same workdir", f"{self._shown(said)} (status {found})", then, good)

    # ---- damaged files -------------------------------------------------------------------------------------------

    def damaged(self, fault: str, path: Path, change: Callable[[bytes], bytes], expected: str, name: str) -> Seen:
        """The run with `path` changed; then again with the file as it was."""
        before = path.read_bytes()
        path.write_bytes(change(before))
        try:
            ended = self.run(name)
        finally:
            path.write_bytes(before)
        return self.row(fault, ended, expected, 2, name)

    def cut_weights(self) -> Seen:
        path = self.folder / "model" / "model.safetensors"
        return self.damaged(
            "model.safetensors cut in half", path, lambda raw: raw[: len(raw) // 2], "is truncated", "cut_model"
        )

    def flipped_header(self) -> Seen:
        def change(raw: bytes) -> bytes:
            return raw[:8] + bytes([raw[8] ^ 4]) + raw[9:]

        path = self.folder / "model" / "model.safetensors"
        return self.damaged("a bit of its header flipped", path, change, "no readable safetensors header", "bad_header")

    def cut_pairs(self) -> Seen:
        path = self.folder / "pairs.jsonl"
        return self.damaged(
            "a line of the training pairs cut",
            path,
            lambda raw: raw[:-40],
            "pairs.jsonl:40: the line is cut off",
            "cut_pairs",
        )

    def not_utf8(self) -> Seen:
        def change(raw: bytes) -> bytes:
            at = raw.index(b"find") if b"find" in raw else 1000
            return raw[:at] + bytes([raw[at] | 0x80]) + raw[at + 1 :]

        path = self.folder / "pairs.jsonl"
        return self.damaged(
            "a bit of the training pairs flipped",
            path,
            change,
            r"pairs.jsonl:\d+: byte \d+ is not valid UTF-8",
            "bad_pairs",
        )

    def flipped_manifest(self) -> Seen:
        shutil.copytree(self.folder / "whole", self.folder / "manifest")
        path = self.folder / "manifest" / "manifest.json"
        return self.damaged(
            "manifest.json cut", path, lambda raw: raw[:100], "manifest.json is not valid JSON", "manifest"
        )

    def compiled_programs(self) -> Seen:
        """Bits flipped in every file of JAX's cache of compiled programs."""
        draw, files = random.Random(3), [p for p in (self.folder / "compiled").rglob("*") if p.is_file()]
        kept = {path: path.read_bytes() for path in files if path.stat().st_size}
        for path, raw in kept.items():
            changed = bytearray(raw)
            for _ in range(8):
                changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            path.write_bytes(changed)
        status, said = self.run("compiled_flipped")
        good = status == 0 and facts(self.folder / "compiled_flipped") == self.whole
        for path, raw in kept.items():
            path.write_bytes(raw)
        then = "ends as a run left alone" if good else f"status {status}: {self._shown(said)}"
        return Seen(
            f"8 bits flipped in each of {len(kept)} compiled programs in the cache",
            "programs are compiled again",
            then,
            good,
        )

    def flipped_results(self) -> Seen:
        """400 copies of results.json with a bit flipped, each made into a report."""
        raw, draw, found = (ROOT / "results" / "tune_sft" / "results.json").read_bytes(), random.Random(4), {0: 0, 2: 0}
        place = self.folder / "flipped"
        place.mkdir()

        def report() -> None:
            from hrsa_jax.report.page import main

            for _ in range(400):
                changed = bytearray(raw)
                changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
                (place / "results.json").write_bytes(changed)
                found[main([str(place)])] += 1
            (place / "found.json").write_text(json.dumps(found))

        status = wait(start(report, self.folder / "flipped.log"), LIMIT)
        counts = json.loads((place / "found.json").read_text()) if status == 0 else {}
        said = [line for line in (self.folder / "flipped.log").read_text().splitlines() if line.startswith("error")]
        shown = self._shown(said[0]) if said else ""
        then = f"{counts.get('2')} refused like this, {counts.get('0')} still valid and shown"
        return Seen("results.json with one bit flipped, 400 times, made into a report", shown, then, status == 0)

    # ---- the network ---------------------------------------------------------------------------------------------

    def hub_gone(self) -> Seen:
        return self._hub("the hub cannot be reached", "http://127.0.0.1:9", "hub cannot be reached")

    def hub_cut(self) -> Seen:
        """A hub that lists the files, sends half of the weights, and is gone."""
        server = HTTPServer(("127.0.0.1", 0), CutHub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            where = f"http://127.0.0.1:{server.server_port}"
            return self._hub("the hub goes away in the middle of a file", where, "error: ")
        finally:
            server.shutdown()

    def _hub(self, fault: str, endpoint: str, expected: str) -> Seen:
        config = "--config.backbone.source=someone/some-model"
        command = [sys.executable, "launch.py", f"--config={self.program.config}", f"--workdir={self.folder / 'hub'}"]
        environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(self.folder / "hf")}
        environment |= {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2", "NO_PROXY": "127.0.0.1"}
        environment |= {"HF_HUB_DISABLE_XET": "1"}
        ran = subprocess.run(
            [*command, config], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
        lines = ran.stderr.strip().splitlines()
        said = lines[-1] if lines else ""
        clean = "Traceback" not in ran.stderr and not (self.folder / "hub" / "stages").exists()
        good = ran.returncode == 2 and expected in said and clean
        then = "no stage was begun" if clean else "NOT clean"
        return Seen(fault, f"{self._shown(said)} (status {ran.returncode})", then, good)


def main() -> int:
    parser = argparse.ArgumentParser(description="Does to a run what machines and people do; prints a table.")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    parser.add_argument("--only", default="", help="names of faults, with commas between")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    prepare(folder)
    faults = Faults(folder)
    names = ["full_disk", "read_only_disk", "file_size_limit", "clock", "sigterm", "two_runs", "cut_weights"]
    names += ["flipped_header", "cut_pairs", "not_utf8", "flipped_manifest", "compiled_programs", "flipped_results"]
    names += ["hub_gone", "hub_cut"]
    print("| fault | what the run said | then |\n|---|---|---|", flush=True)
    bad = []
    for name in asked.only.split(",") if asked.only else names:
        row = getattr(faults, name)()
        if row is None:
            print(f"| {name.replace('_', ' ')} | not tried: mounting is not allowed here | |", flush=True)
            continue
        print(f"| {row.fault} | {row.said} | {row.then} |", flush=True)
        bad += [] if row.good else [name]
    print(f"{len(bad)} not as they should: {', '.join(bad)}" if bad else "all as they should", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
