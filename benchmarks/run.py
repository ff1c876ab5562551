"""Speed against named peers on the same machine, weights and inputs, in the same run: `make bench`.

Each room is a module of this folder with `measurements()`; its figures go to benchmarks/results/ROOM.json and into
benchmarks/RESULTS.md. `python -m benchmarks.run ROOM ...` runs some rooms only.
"""

from __future__ import annotations

import importlib
import os
import sys

ROOMS = ("encode", "similarity", "comparison", "train", "generate", "evaluate")


def main() -> int:
    """Runs the rooms named on the command line, or all."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from benchmarks.measure import machine, save

    chosen = sys.argv[1:] or list(ROOMS)
    unknown = [name for name in chosen if name not in ROOMS]
    if unknown:
        print(f"error: {unknown[0]!r} is not a benchmark: it is one of {', '.join(ROOMS)}", file=sys.stderr)
        return 2
    print(machine(), flush=True)
    for room in chosen:
        measured = []
        for item in importlib.import_module(f"benchmarks.{room}").measurements():
            print(item.line(), flush=True)
            measured.append(item)
            save(room, measured)  # each as it comes: a room that is stopped keeps what it measured
    return 0


if __name__ == "__main__":
    sys.exit(main())
