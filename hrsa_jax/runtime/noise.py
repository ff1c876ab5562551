"""Keeps what libraries print off the terminal: their warnings, bars and C++ messages go into the run's log file.

`caught` turns file descriptors 1 and 2 aside, so that nothing below Python escapes either; the run itself speaks
through `voice()` and `output()`. Until a workdir is open the messages wait in a temporary file, `attach` moves them
into the log.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

QUIET, NORMAL, EVERYTHING = -1, 0, 1  # --verbosity: results only; a line for every stage; library messages as well


@dataclass
class _State:
    verbosity: int = NORMAL
    voice: TextIO | None = None
    output: TextIO | None = None
    waiting: BinaryIO | None = None
    log: Path | None = None


_here = _State()


def voice() -> TextIO:
    """Where the run says how it gets on: the terminal (or pipe) that was stderr when the command began."""
    return _here.voice or sys.stderr


def output() -> TextIO:
    """Where the run prints its results: the terminal (or pipe) that was stdout when the command began."""
    return _here.output or sys.stdout


def say(text: str) -> None:
    """A last word on stderr: why the run ended. The log, where there is one, keeps it too.

    Written without Python's buffers, which a signal's handler must not enter again.
    """
    try:
        end = "\n" if voice().isatty() else ""  # below the bar, if there is one
        os.write(voice().fileno(), f"{end}{text}\n".encode(errors="replace"))
    except (OSError, ValueError):  # a stream that is no file
        print(text, file=voice(), flush=True)
    if _here.log is not None and _here.log.exists():
        with suppress(OSError):
            log = os.open(_here.log, os.O_WRONLY | os.O_APPEND)
            os.write(log, f"{time.strftime('%H:%M:%S')} {text}\n".encode(errors="backslashreplace"))
            os.close(log)


def quiet() -> bool:
    """True where only results are wanted on the terminal."""
    return _here.verbosity < NORMAL


def set_verbosity(level: int) -> None:
    """Sets how much is printed: below 0 results only, 0 every stage, above 0 what libraries say too."""
    _here.verbosity = level


@contextmanager
def caught() -> Iterator[None]:
    """While the block runs, and after it unless it fails, what is printed by libraries goes elsewhere.

    An error ends it at once, so that a traceback is seen. A crash below Python is reported on the terminal too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    _here.voice, _here.output = (
        os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="replace") for number in (2, 1)
    )
    _here.waiting = tempfile.TemporaryFile()  # noqa: SIM115
    _turn_to(_here.waiting.fileno())
    faulthandler.enable(file=_here.voice)
    try:
        yield
    except BaseException:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
        faulthandler.enable(file=sys.__stderr__ or 2)
        _here.voice = _here.output = None
        raise
    finally:
        for copy in kept:
            os.close(copy)


def attach(path: Path) -> None:
    """From now on messages are appended to `path`, those that waited first."""
    _here.log = path
    if _here.waiting is None:
        return
    waiting, _here.waiting = _here.waiting, None
    try:
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:  # a full disk is met again where it matters
        return
    sys.stdout.flush()
    sys.stderr.flush()
    waiting.seek(0)
    os.write(log, waiting.read())
    _turn_to(log)
    os.close(log)
    waiting.close()


def _turn_to(number: int) -> None:
    os.dup2(number, 1)
    os.dup2(number, 2)
