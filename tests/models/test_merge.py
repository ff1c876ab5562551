"""Interpolated models: exact ends, the definition in between, and what cannot be merged."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from test_generate import CONFIG

from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.lora import LoRAConfig, add_lora
from hrsa_jax.models.merge import interpolate
from hrsa_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def ends() -> tuple[Decoder, Decoder]:
    return Decoder(CONFIG, seed=0), Decoder(CONFIG, seed=1)


def _leaves(model: Decoder) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_the_ends_are_exact(ends, path):
    for share, end in zip((0.0, 1.0), ends, strict=True):
        for got, want in zip(_leaves(interpolate(*ends, share, path)), _leaves(end), strict=True):
            np.testing.assert_array_equal(got, want)


def test_linear_and_spherical_follow_their_definitions(ends):
    a, b = (np.asarray(end.blocks.q_proj.kernel[...], np.float64) for end in ends)
    line = np.asarray(interpolate(*ends, 0.25).blocks.q_proj.kernel[...])
    np.testing.assert_allclose(line, 0.75 * a + 0.25 * b, atol=1e-7)
    circle = np.asarray(interpolate(*ends, 0.25, "spherical").blocks.q_proj.kernel[...])
    for layer in range(CONFIG.num_layers):  # every layer is a tensor of its own
        x, y = a[layer].ravel(), b[layer].ravel()
        angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        unit = (np.sin(0.75 * angle) * x / np.linalg.norm(x) + np.sin(0.25 * angle) * y / np.linalg.norm(y)) / np.sin(
            angle
        )
        want = unit * (0.75 * np.linalg.norm(x) + 0.25 * np.linalg.norm(y))
        np.testing.assert_allclose(circle[layer].ravel(), want, atol=1e-6)


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_a_model_with_itself_is_itself(ends, path):
    for got, want in zip(_leaves(interpolate(ends[0], ends[0], 0.5, path)), _leaves(ends[0]), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-7)


def test_what_cannot_be_merged_is_refused(ends):
    wider = Decoder(dataclasses.replace(CONFIG, intermediate_size=64), seed=0)
    with pytest.raises(InputError, match=r"merge: blocks\.down_proj\.kernel has shape"):
        interpolate(ends[0], wider, 0.5)
    with pytest.raises(InputError, match=r"config\.rms_norm_eps is 1e-05 in a and 1e-06 in b"):
        interpolate(ends[0], Decoder(dataclasses.replace(CONFIG, rms_norm_eps=1e-6), seed=0), 0.5)
    with pytest.raises(InputError, match="adapters merged"):
        interpolate(ends[0], add_lora(ends[1], LoRAConfig(rank=2), seed=0), 0.5)
    with pytest.raises(InputError, match=r"share=1\.5 is outside"):
        interpolate(*ends, 1.5)
