"""What a run says: lines and progress on the terminal, metrics.jsonl, TensorBoard events.

On a terminal long work shows a bar with its remaining time; piped or in CI the same work prints a plain line now
and then. metrics.jsonl holds one JSON object a row: {"stage", "step", ...metrics}.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from hrsa_jax.runtime import processes


class Progress:
    """One counted piece of work; `update` after each part of it."""

    def __init__(self, label: str, total: int, *, stream: TextIO, done: int = 0, seconds_between_lines: float = 20.0):
        self.label, self.total, self.done, self.start_at = label, total, done, done
        self._stream, self._pause = stream, seconds_between_lines
        self._started = self._last = time.monotonic()
        self._note = ""
        self._bar: Any = None
        if stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, desc=label, file=stream, dynamic_ncols=True, leave=False)

    def update(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished parts; `note` (for example the loss) is shown behind the count."""
        self.done += count
        self._note = note or self._note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= self._pause and self.done < self.total:
            self._last = now
            self._print(f"{self.done}/{self.total}, about {self.remaining():.0f} s left")

    def remaining(self) -> float:
        """Seconds left at the speed so far (NaN before the first part)."""
        worked = self.done - self.start_at
        if worked <= 0:
            return math.nan
        return (time.monotonic() - self._started) / worked * (self.total - self.done)

    def close(self) -> None:
        """Ends the bar, or prints the closing line."""
        if self._bar is not None:
            self._bar.close()
        self._print(f"{self.done}/{self.total} in {time.monotonic() - self._started:.1f} s")

    def _print(self, text: str) -> None:
        note = f", {self._note}" if self._note else ""
        print(f"  {self.label}: {text}{note}", file=self._stream, flush=True)


class RunLog:
    """The voice of one run. Without a folder it only prints; on other processes than 0 (primary False) it is silent."""

    def __init__(self, folder: Path | None = None, *, primary: bool | None = None, stream: TextIO | None = None):
        self.primary = primary = processes.index() == 0 if primary is None else primary
        self._stream: TextIO = (stream or sys.stderr) if primary else open(os.devnull, "w")  # noqa: SIM115
        self._path = folder / "metrics.jsonl" if folder is not None and primary else None
        self._events_folder = folder / "tensorboard" if folder is not None and primary else None
        self._writers: dict[str, Any] = {}

    def line(self, text: str) -> None:
        """Prints one line."""
        print(text, file=self._stream, flush=True)

    @contextmanager
    def progress(self, label: str, total: int, *, done: int = 0) -> Iterator[Progress]:
        """Shows `total` parts of work under `label`, the first `done` of which were finished earlier."""
        progress = Progress(label, total, stream=self._stream, done=done)
        try:
            yield progress
        finally:
            progress.close()

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
        """The rows of one stage in order; a row cut by a crash is left out."""
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
                rows.append(json.loads(text))
            except json.JSONDecodeError:
                continue
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
