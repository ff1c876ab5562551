"""A hub that goes away, a clock that jumps, a disk of its own: what faults.py puts around a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path


def jump_clock() -> None:
    """From here on this process's wall clock goes ten days back, three years on and right again, every 0.3 s."""
    real, real_ns, began = time.time, time.time_ns, time.monotonic()

    def jump() -> float:
        return (-864_000.0, 94_608_000.0, 0.0)[int((time.monotonic() - began) / 0.3) % 3]

    time.time = lambda: real() + jump()
    time.time_ns = lambda: real_ns() + int(jump() * 1e9)


class CutHub(BaseHTTPRequestHandler):
    """Answers as the hub does, but for the last half of every weight file."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models"):
            facts_ = {
                "id": "someone/some-model",
                "sha": "0" * 40,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            files = ("config.json", "model.safetensors")
            facts_["siblings"] = [{"rfilename": name} for name in files]
            tree = [{"type": "file", "path": name, "size": 10_000, "oid": "1" * 40} for name in files]
            self._send(json.dumps(tree if "/tree/" in self.path else facts_).encode(), whole=True)
        elif self.path.endswith("config.json"):
            self._send(b"{}", whole=True)
        else:
            self._send(bytes(10_000), whole=False)

    do_HEAD = do_GET

    def _send(self, body: bytes, *, whole: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"' + "1" * 40 + '"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if whole else body[: len(body) // 2])

    def log_message(self, *_: object) -> None:
        """Silent."""


class mounted:
    """A tmpfs in memory at `path` while the block runs; False where mounting is not allowed."""

    def __init__(self, path: Path, options: str):
        self.path, self.options = path, options

    def __enter__(self) -> bool:
        self.path.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", self.options, "none", str(self.path)]
        self.can = (
            shutil.which("mount") is not None
            and subprocess.run(command, capture_output=True, check=False).returncode == 0
        )
        return self.can

    def __exit__(self, *_: object) -> None:
        if self.can:
            subprocess.run(["umount", "-l", str(self.path)], check=False)
