"""What only a GPU can show: the numbers of the fused kernel. Speed: python -m benchmarks.gpu."""

import jax
import numpy as np
import pytest

from benchmarks.gpu import TINY, convert, fused_error

pytestmark = pytest.mark.skipif(jax.devices()[0].platform != "gpu", reason="needs a GPU: JAX sees none")


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_cudnn_attention_and_its_gradients_equal_the_reference(mode):
    assert fused_error(mode, tokens=256) < 0.03  # bfloat16 has 8 bits


def test_a_training_step_runs_with_either_kernel():
    found = convert("Qwen2.5-0.5B", TINY)
    assert np.isfinite(list(found.values())).all()
    assert {"auto s", "cudnn s"} <= set(found)
