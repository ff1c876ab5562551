"""Two models on the same texts, all three levels, every layer: `compare`.

Presets: `careful` (default) leaves sinks out, debiases over texts and gives intervals and controls; `paper` follows
the published protocol (tokens as samples incl. position 0, biased CKA, rows as they are in k-NN, no controls).
L matching layers h_0..h_L, N rows of G texts.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from hrsa_jax.hrsa import curves_geometry as geometry
from hrsa_jax.hrsa.curves_function import probe_curves
from hrsa_jax.hrsa.curves_representation import PairRows, correlation_curve, correlation_matrix, procrustes_curves
from hrsa_jax.hrsa.results import Comparison, Curve
from hrsa_jax.hrsa.states import TokenStates, check_same_rows, shared_row_mask, unit_rms_rows
from hrsa_jax.hrsa.uncertainty import text_codes

Preset = Literal["careful", "paper"]
KS = (5, 10, 50)
VARIANT_LAYERS = 5  # sinks, z-scored, top PC, other texts: as many layers as this, evenly spread
CONTROL_LAYERS = 3  # half-samples and noise control of the inverse row entropy
PROBES = ("probe_source", "probe_target", "probe_transfer", "probe_transfer_aligned", "probe_agreement")
MATCHING = (
    "correlation",
    "procrustes_residual",
    "procrustes_cosine",
    "inverse_row_entropy",
    "cka",
    "cka_biased",
    *(f"knn_{k}" for k in KS),
)


def compare(
    tokens_a: TokenStates | None,
    tokens_b: TokenStates | None,
    *,
    texts_a: np.ndarray | None = None,
    texts_b: np.ndarray | None = None,
    labels: Sequence[Any] | None = None,
    text_groups: Sequence[Any] | None = None,
    preset: Preset = "careful",
    seed: int = 0,
    row_mask: np.ndarray | None = None,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare two models at the levels of representation, geometry and function.

    Args:
      tokens_a, tokens_b: hidden states of the same tokens; None for both (tokenizers differ) compares the pooled
        texts instead, one row each.
      texts_a, texts_b: pooled states (L+1, n, width) of the same texts, for the probes.
      labels: one class per pooled text; without them there are no probes.
      text_groups: pooled texts of one group (a document, a source) never cross a split.
      preset: "careful" or "paper".
      row_mask: (N,) bool, the token rows to keep instead of this pair's own `shared_row_mask`; give both
        comparisons of a study the mask over all four models.
      progress: called with each stage's name.

    Measures that need equal widths or equal numbers of layers are refused by name when they differ. Raises
    InputError when the tokens differ, ValueError on misshapen or non-finite input.
    """
    if preset not in ("careful", "paper"):
        raise ValueError(f"preset is {preset!r}; choose 'careful' or 'paper'")
    if (tokens_a is None) != (tokens_b is None):
        raise ValueError("tokens_a and tokens_b: give both or neither")
    report = progress or (lambda stage: None)
    comparison = Comparison({}, {}, facts={"preset": preset, "seed": seed, "level": "tokens"})
    if tokens_a is None or tokens_b is None:
        tokens_a, tokens_b = _as_rows(texts_a, text_groups), _as_rows(texts_b, text_groups)
        comparison.facts["level"] = "texts"
        comparison.notes.append("no shared tokens: every measure is over pooled texts, one row each")
    check_same_rows(tokens_a, tokens_b)
    careful = preset == "careful"
    keep = _rows_kept(tokens_a, tokens_b, row_mask, careful, comparison)
    _describe(comparison, tokens_a, tokens_b, keep)
    _token_measures(comparison, tokens_a, tokens_b, keep, careful=careful, seed=seed, report=report)
    if labels is not None:
        report("probes")
        _probes(comparison, texts_a, texts_b, labels, text_groups, careful=careful, seed=seed)
    return comparison


def _as_rows(texts: np.ndarray | None, groups: Sequence[Any] | None) -> TokenStates:
    if texts is None:
        raise ValueError("tokens_a is None, so texts_a and texts_b must hold the pooled states of both models")
    if groups is None:
        return TokenStates(texts, np.arange(texts.shape[1], dtype=np.int32))
    return TokenStates(texts, text_codes(np.asarray(groups), texts.shape[1])[0].astype(np.int32))


def _rows_kept(a: TokenStates, b: TokenStates, mask: np.ndarray | None, careful: bool, comparison: Comparison):
    rows = a.states_LND.shape[1]
    if mask is not None:
        keep = np.asarray(mask, bool)
        if keep.shape != (rows,):
            raise ValueError(f"row_mask has shape {keep.shape} for {rows} rows")
    elif careful:
        keep = shared_row_mask(a, b)
    else:
        keep = np.ones(rows, bool)
    if careful and keep.sum() < 0.5 * rows:
        comparison.notes.append(f"the row mask leaves out {rows - keep.sum()} of {rows} rows: read with care")
    return keep


def _describe(comparison: Comparison, a: TokenStates, b: TokenStates, keep: np.ndarray) -> None:
    comparison.facts.update(
        rows=int(keep.sum()),
        rows_left_out=int((~keep).sum()),
        texts=len(np.unique(a.groups_N[keep])),
        layers={"a": a.num_layers, "b": b.num_layers},
        width={"a": a.width, "b": b.width},
    )


def _token_measures(
    comparison: Comparison,
    a: TokenStates,
    b: TokenStates,
    keep: np.ndarray,
    *,
    careful: bool,
    seed: int,
    report: Callable[[str], None],
) -> None:
    codes, num_texts = text_codes(a.groups_N[keep], int(keep.sum()))
    if careful and num_texts < 8:
        raise ValueError(f"tokens_a holds rows of {num_texts} texts; intervals over texts need at least 8")
    measures, matrices = comparison.measures, comparison.matrices
    x, y = unit_rms_rows(a.states_LND, keep), unit_rms_rows(b.states_LND, keep)
    report("CKA of all layer pairs")
    found, cka_curves = geometry.cka_of_all_layers(x, y, codes, careful=careful)
    matrices.update(found)
    equal_widths = a.width == b.width
    if equal_widths:
        report("correlation")
        matrices["correlation_matrix"], facts = correlation_matrix(x, y)
        comparison.facts.update(facts)
    else:
        why = f"needs equal widths, the models have {a.width} and {b.width}"
        comparison.refused.update(correlation=why, correlation_matrix=why)
    if a.num_layers != b.num_layers:
        why = f"needs matching layers, the models have {a.num_layers} and {b.num_layers} states"
        comparison.refused.update(dict.fromkeys(MATCHING, why))
        return
    ids = None if a.token_ids_N is None else a.token_ids_N[keep]
    pair = PairRows(x, y, codes, num_texts, ids)
    if equal_widths:
        measures["correlation"] = correlation_curve(pair, careful=careful)
    report("Procrustes")
    control = _spread_layers(len(x), CONTROL_LAYERS)
    curves, facts, notes = procrustes_curves(pair, careful=careful, seed=seed, control_layers=control)
    measures.update(curves)
    comparison.facts.update(facts)
    comparison.notes.extend(notes)
    measures.update(cka_curves)
    _neighbours(comparison, a, b, pair, keep, careful=careful, seed=seed, report=report)


def _neighbours(
    comparison: Comparison,
    a: TokenStates,
    b: TokenStates,
    pair: PairRows,
    keep: np.ndarray,
    *,
    careful: bool,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """k-NN at every layer, and the variants of k-NN and CKA at a few."""

    def add(rows: PairRows, **options: Any) -> None:
        ks = [k for k in KS if k < rows.num_rows]
        if options.get("groups_N") is not None:
            largest = np.unique(options["groups_N"], return_counts=True)[1].max()
            ks = [k for k in ks if k <= rows.num_rows - largest]
        for k in set(KS) - set(ks):
            name = f"knn_{k}{options.get('suffix', '')}"
            comparison.refused[name] = f"needs more than {k} candidate rows, there are {rows.num_rows} rows"
        if ks:
            curves, facts = geometry.knn_curves(rows, ks, careful=careful, seed=seed, **options)
            comparison.measures.update(curves)
            comparison.facts.update(facts)

    report("nearest neighbours")
    if not careful:
        raw = PairRows(a.states_LND[:, keep], b.states_LND[:, keep], pair.codes_N, pair.num_texts, None)
        add(raw, centred=False)
        return
    add(pair)
    report("variants")
    some = _spread_layers(len(pair.x_LND), VARIANT_LAYERS)
    add(pair.subset(some), suffix="_other_texts", groups_N=pair.codes_N, layers=some)
    if pair.token_ids_N is not None:
        add(pair.subset((0,)), suffix="_other_tokens", groups_N=pair.token_ids_N, layers=(0,))
    comparison.measures.update(geometry.cka_variants(pair, some))
    everything = np.ones(len(keep), bool)
    if a.positions_N is None or keep.all():
        return
    codes, num_texts = text_codes(a.groups_N, len(keep))
    sides = [unit_rms_rows(s.states_LND, everything, some) for s in (a, b)]
    sinks = PairRows(sides[0], sides[1], codes, num_texts, None)
    curve = geometry.cka_curve(sinks, what=", sink rows included")
    comparison.measures["cka_with_sinks"] = Curve(
        some, curve.value, curve.interval95, curve.method, curve.replicates, 0.0, curve.resampling
    )
    add(sinks, suffix="_with_sinks", layers=some)


def _probes(
    comparison: Comparison,
    texts_a: np.ndarray | None,
    texts_b: np.ndarray | None,
    labels: Sequence[Any],
    groups: Sequence[Any] | None,
    *,
    careful: bool,
    seed: int,
) -> None:
    if texts_a is None or texts_b is None:
        raise ValueError("labels were given without texts_a and texts_b, the pooled states that the probes read")
    if len(texts_a) != len(texts_b):
        why = f"needs matching layers, the models have {len(texts_a)} and {len(texts_b)} states"
        comparison.refused.update(dict.fromkeys(PROBES, why))
        return
    if texts_a.shape[2] != texts_b.shape[2]:
        why = f"needs equal widths, the models have {texts_a.shape[2]} and {texts_b.shape[2]}"
        comparison.refused.update(probe_transfer=why, probe_transfer_reverse=why, probe_agreement=why)
    curves, facts, notes = probe_curves(texts_a, texts_b, labels, groups=groups, careful=careful, seed=seed)
    comparison.measures.update(curves)
    comparison.facts.update(facts)
    comparison.notes.extend(notes)


def _spread_layers(num_layers: int, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unique(np.linspace(0, num_layers - 1, count).round()))
