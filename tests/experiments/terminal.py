"""A terminal to run commands in, and what must not be seen on one."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

COLUMNS = 80

# What libraries print: Python's and absl's warnings, C++ logs, bars of others, stack traces.
FOREIGN = re.compile(
    r"Warning|warnings\.warn|WARNING|site-packages|Traceback|it/s\]|s/it\]|^[IWEF]\d{4} |^\[\w+\] Token indices|absl"
)


def in_terminal(command: list[str], *, cwd: Path, env: dict[str, str], log: Path) -> int:
    """Runs `command` on a terminal of 80 columns, keeps every byte it receives in `log`, returns the exit status."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(command, cwd=cwd, env={**env, "TERM": "xterm"}, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    with log.open("wb") as file:
        while True:
            try:
                part = os.read(outer, 65536)
            except OSError:  # the last process on the terminal is gone
                break
            if not part:
                break
            file.write(part)
    os.close(outer)
    return process.wait(timeout=600)


def shown(raw: str) -> list[str]:
    """The lines as they stand in the end: what follows a carriage return covers what was there."""
    lines = []
    for line in raw.replace("\r\n", "\n").split("\n"):
        seen = ""
        for piece in line.split("\r"):
            seen = piece + seen[len(piece) :]
        lines.append(seen.rstrip())
    return lines


def faults(raw: str, *, terminal: bool) -> list[str]:
    """Each line that is too wide, holds a control character, or comes from a library."""
    found = []
    for line in raw.replace("\r\n", "\n").split("\n") if terminal else raw.split("\n"):
        pieces = line.split("\r") if terminal else [line]
        if any(len(piece) > COLUMNS for piece in pieces):
            found.append(f"too wide: {line!r}")
        if any(ord(character) < 32 or ord(character) == 127 for piece in pieces for character in piece):
            found.append(f"control character: {line!r}")
        if FOREIGN.search(line):
            found.append(f"not ours: {line!r}")
    return found
