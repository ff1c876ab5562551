"""Tasks that conversion made worse: an embedding model below the untrained backbone that it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hrsa_jax.report import reading

_LEAST = 1.0  # points; a smaller loss is not worth a warning
_MOST_NAMED = 4


def sentences(results: Mapping[str, Any]) -> list[str]:
    """One sentence for each embedding model that scores at least a point below its own untrained backbone on a task.

    The backbone is read in the attention mode that is better on the mean of all tasks, as in the tables.

    Args:
      results: a validated results.json.

    Returns:
      The sentences, losses in points, the largest first; none where there is nothing to say.
    """
    out = []
    for backbone in ("base", "reasoning"):
        attention, lost = _lost(results, backbone)
        if not lost:
            continue
        named = [f"{task} {after:.1f} instead of {before:.1f}" for task, before, after in lost[:_MOST_NAMED]]
        rest = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
        where = f"{len(lost)} of {len(reading.tasks(results))} tasks"
        out.append(
            f"{backbone}-Emb scores at least a point below its own backbone before conversion, in that one's better "
            f"attention mode ({attention}), on {where} ({'; '.join(named)}{rest})."
        )
    return out


def _lost(results: Mapping[str, Any], backbone: str) -> tuple[str, list[tuple[str, float, float]]]:
    """The backbone's better attention; (task, points before, points after) by loss, where conversion cost points."""
    listed, rows = reading.tasks(results), reading.rows(results)
    before = reading.better_mode([row for row in rows if row.model == backbone], listed)
    after = reading.better_mode([row for row in rows if row.model == f"{backbone}-Emb"], listed)
    if before is None or after is None:
        return "", []
    out = []
    for task in listed:
        was, became = (100 * row.scores.get(task.name, math.nan) for row in (before, after))
        if was - became >= _LEAST:
            out.append((task.name, was, became))
    return before.attention or "its own", sorted(out, key=lambda entry: entry[2] - entry[1])
