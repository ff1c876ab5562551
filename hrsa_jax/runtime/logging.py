"""What a run says: how it gets on (stderr), results (stdout), log.txt, metrics.jsonl, TensorBoard events.

On a terminal long work shows a bar with its remaining time; piped, in CI or with TERM=dumb the same work prints a
plain line now and then. No line is wider than the terminal (80 columns where there is none) unless a word of it is,
and no colours are used. log.txt keeps every line, beside what libraries print (runtime/noise.py). metrics.jsonl holds
one JSON object a row: {"stage", "step", ...metrics}.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hrsa_jax.runtime import noise, processes

LOG = "log.txt"
_COLUMNS = 80


def duration(seconds: float) -> str:
    """`4.2 s`, `38 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 >= 60 else "")


def counted(number: int, noun: str) -> str:
    """`1 text`, `1,200 texts`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def columns(stream: TextIO) -> int:
    """Width to print for: the terminal's, or 80."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError, AttributeError):
        return _COLUMNS


def wrapped(text: str, width: int) -> str:
    """Every line of `text` within `width` columns: broken between words, continued two columns further in."""
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        fits = len(line) <= width
        lines += [line] if fits else _broken(line, width, indent + "  ")
    return "\n".join(lines)


def _broken(line: str, width: int, indent: str) -> list[str]:
    keep: dict[str, bool] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return textwrap.wrap(line, width, subsequent_indent=indent, **keep)  # type: ignore[arg-type]


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Prints (name, value) pairs on stdout: names in one column, values beside them within the terminal's width."""
    column = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        print("\n".join(_broken(name.ljust(column) + value, columns(sys.stdout), " " * column)))


class Progress:
    """One counted piece of work; `update` after each part of it."""

    def __init__(self, label: str, total: int, *, stream: TextIO, done: int = 0, seconds_between_lines: float = 20.0):
        self.label, self.total, self.done, self.start_at = label, total, done, done
        self._stream, self._pause = stream, seconds_between_lines
        self._started = self._last = time.monotonic()
        self._first: float | None = None  # when the first part was done
        self._note = ""
        self._shown = 0  # columns of the bar on the terminal now
        self._bar = stream.isatty() and os.environ.get("TERM") != "dumb"
        self.draw()

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished parts; `note` (for example the loss) is shown behind the count."""
        self.done += count
        self._note = note or self._note
        now = time.monotonic()
        if self._first is None:
            self._first, self._first_done = now, self.done
        if now - self._last < (0.1 if self._bar else self._pause) or self.done >= self.total:
            return
        self._last = now
        if self._bar:
            self.draw()
        else:
            self._print(f"{self.done}/{self.total}{self._left()}")

    def remaining(self) -> float:
        """Seconds left at the speed so far (NaN before the first part).

        The first part, which compiles, counts only as long as there is no other.
        """
        worked = self.done - self.start_at
        if worked <= 0 or self._first is None:
            return math.nan
        if self.done > self._first_done:
            speed = (time.monotonic() - self._first) / (self.done - self._first_done)
        else:
            speed = (time.monotonic() - self._started) / worked
        return speed * (self.total - self.done)

    def draw(self) -> None:
        """Puts the bar on the terminal's last line; nothing where there is no terminal."""
        if not self._bar:
            return
        width = columns(self._stream) - 1
        filled = round(20 * self.done / self.total) if self.total else 20
        note = f", {self._note}" if self._note else ""
        counted = f"{self.done}/{self.total} [{'#' * filled}{'.' * (20 - filled)}]"
        text = f"  {self.label} {counted}{self._left()}{note}"[:width]
        self._stream.write("\r" + text.ljust(min(self._shown, width)))
        self._stream.flush()
        self._shown = len(text)

    def clear(self) -> None:
        """Takes the bar off, so that a line can be printed."""
        if self._bar and self._shown:
            self._stream.write("\r" + " " * self._shown + "\r")
            self._stream.flush()
            self._shown = 0

    def close(self) -> None:
        """Ends the bar, or prints the closing line."""
        self.clear()
        self._bar = False
        self._print(self.outcome())

    def outcome(self) -> str:
        """`30/30 in 4 min 2 s`."""
        return f"{self.done}/{self.total} in {duration(time.monotonic() - self._started)}"

    def _left(self) -> str:
        left = self.remaining()
        return "" if math.isnan(left) else f", about {duration(max(1, round(left)))} left"

    def _print(self, text: str) -> None:
        note = f", {self._note}" if self._note else ""
        print(wrapped(f"  {self.label}: {text}{note}", columns(self._stream)), file=self._stream, flush=True)


class RunLog:
    """The voice of one run. Without a folder it only prints; on other processes than 0 (primary False) it is silent.

    stream: takes everything that is printed, in place of stderr and stdout.
    """

    def __init__(self, folder: Path | None = None, *, primary: bool | None = None, stream: TextIO | None = None):
        self.primary = primary = processes.index() == 0 if primary is None else primary
        self._stream: TextIO = (stream or noise.voice()) if primary else open(os.devnull, "w")  # noqa: SIM115
        self._output: TextIO = (stream or noise.output()) if primary else self._stream
        self._path = folder / "metrics.jsonl" if folder is not None and primary else None
        self._log = folder / LOG if folder is not None and primary else None
        self._events_folder = folder / "tensorboard" if folder is not None and primary else None
        self._writers: dict[str, Any] = {}
        self._progress: Progress | None = None
        if self._log is not None:
            noise.attach(self._log)
            self._keep(f"---- {time.strftime('%Y-%m-%d %H:%M:%S %Z')}: {' '.join(sys.argv)}")

    def line(self, text: str) -> None:
        """Prints text that tells how the run gets on; left out where only results are wanted."""
        self._keep(text)
        if not noise.quiet():
            self._say(text, self._stream)

    def result(self, text: str) -> None:
        """Prints what the run was for, on stdout; never left out."""
        self._keep(text)
        self._say(text, self._output)

    def problem(self, text: str) -> None:
        """Prints what failed or is missing, on stderr; never left out."""
        self._keep(text)
        self._say(text, self._stream)

    def _say(self, text: str, stream: TextIO) -> None:
        if self._progress is not None:
            self._progress.clear()
        print(wrapped(text, columns(stream)), file=stream, flush=True)
        if self._progress is not None:
            self._progress.draw()

    def _keep(self, text: str) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # a full disk is met again where it matters
                with self._log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write("".join(f"{time.strftime('%H:%M:%S')} {line}\n" for line in text.split("\n")))

    @contextmanager
    def progress(self, label: str, total: int, *, done: int = 0) -> Iterator[Progress]:
        """Shows `total` parts of work under `label`, the first `done` of which were finished earlier."""
        stream = self._stream
        with contextlib.ExitStack() as stack:
            if noise.quiet():
                stream = stack.enter_context(open(os.devnull, "w"))
            outer, self._progress = self._progress, Progress(label, total, stream=stream, done=done)
            try:
                yield self._progress
            finally:
                self._progress.close()
                self._keep(f"  {label}: {self._progress.outcome()}")
                self._progress = outer

    def metrics(self, stage: str, step: int, values: dict[str, Any]) -> None:
        """Appends one row to metrics.jsonl and to the stage's TensorBoard events (non-finite values become null)."""
        if self._path is None:
            return
        clean = {key: _json_number(value) for key, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step, **clean}) + "\n")
        writer = self._writer(stage)
        for key, value in clean.items():
            if value is not None:
                writer.add_scalar(key, value, step)

    def history(self, stage: str) -> list[dict[str, Any]]:
        """The rows of one stage in order; a row cut by a crash or otherwise damaged is left out."""
        return processes.agreed([row for row in self._rows() if row["stage"] == stage])

    def rewind(self, stage: str, step: int) -> None:
        """Forgets the stage's rows at `step` and later: a resumed run writes them again."""
        if self._path is None or not self._path.exists():
            return
        kept = [row for row in self._rows() if row["stage"] != stage or row["step"] < step]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(temporary, self._path)

    def close(self) -> None:
        """Flushes and closes the TensorBoard files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _rows(self) -> list[dict[str, Any]]:
        if self._path is None or not self._path.exists():
            return []
        rows = []
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and "stage" in row and isinstance(row.get("step"), int | float):
                rows.append(row)
        return rows

    def _writer(self, stage: str) -> Any:
        if stage not in self._writers:
            from tensorboardX import SummaryWriter

            assert self._events_folder is not None
            self._writers[stage] = SummaryWriter(str(self._events_folder / stage.replace("/", "-")))
        return self._writers[stage]


def _json_number(value: Any) -> Any:
    if isinstance(value, str | bool) or value is None:
        return value
    number = np.asarray(value).item()
    return None if isinstance(number, float) and not math.isfinite(number) else number
