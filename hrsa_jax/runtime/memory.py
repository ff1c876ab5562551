"""How much memory a stage of a run takes."""

from __future__ import annotations

import threading


class PeakMemory:
    """Peak resident memory of this process while a stage runs, sampled five times a second."""

    def __init__(self) -> None:
        self._peak = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def peak_mb(self) -> float:
        self._sample()
        return self._peak / 2**20

    def _sample(self) -> None:
        import psutil

        self._peak = max(self._peak, psutil.Process().memory_info().rss)

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._sample()
