"""Geometry level: one import path for the measures of shape (CKA) and of neighbourhoods (k-NN)."""

from hrsa_jax.hrsa.cka import cka_permutation_mean, linear_cka, participation_ratio, rbf_cka
from hrsa_jax.hrsa.cka_batches import cka_of_batches
from hrsa_jax.hrsa.cka_pass import CKAPass, cka_pass
from hrsa_jax.hrsa.cka_stack import cka_matrix
from hrsa_jax.hrsa.cka_stream import CKAState, cka_init, cka_result, cka_update
from hrsa_jax.hrsa.cka_texts import cka_jackknife
from hrsa_jax.hrsa.neighbors import (
    k_occurrence_skew,
    knn_chance,
    knn_overlap,
    mutual_knn,
    nearest_neighbors,
    neighbor_overlap,
    tie_fraction,
)

__all__ = [
    "CKAPass",
    "CKAState",
    "cka_init",
    "cka_jackknife",
    "cka_matrix",
    "cka_of_batches",
    "cka_pass",
    "cka_permutation_mean",
    "cka_result",
    "cka_update",
    "k_occurrence_skew",
    "knn_chance",
    "knn_overlap",
    "linear_cka",
    "mutual_knn",
    "nearest_neighbors",
    "neighbor_overlap",
    "participation_ratio",
    "rbf_cka",
    "tie_fraction",
]
