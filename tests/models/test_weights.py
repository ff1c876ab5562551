"""Loading and saving: every dtype and layout, straight into shardings, and back to transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from tiny_models import assert_close, hf_model, load_decoder, our_states, right_padded, save, their_states

from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.weights import save_hf
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import make_mesh


def equal(a: Decoder, b: Decoder) -> bool:
    return all(
        np.array_equal(np.asarray(x, np.float32), np.asarray(y, np.float32))
        for x, y in zip(jax.tree.leaves(nnx.state(a)), jax.tree.leaves(nnx.state(b)), strict=True)
    )


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_until_asked(kind, tmp_path):
    folder = save(hf_model("qwen2").to(kind), tmp_path)
    kept, widened = load_decoder(folder, dtype=None), load_decoder(folder)
    assert kept.embed[...].dtype == {torch.float16: jnp.float16, torch.bfloat16: jnp.bfloat16}[kind]
    assert widened.embed[...].dtype == jnp.float32
    assert equal(kept, widened)


def test_index_sharded_equals_single_file(tmp_path):
    model = hf_model("llama")
    single = load_decoder(save(model, tmp_path / "one"))
    save(model, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    assert equal(single, load_decoder(tmp_path / "many"))


def test_base_model_exports_have_states_and_no_logits(tmp_path):
    model = hf_model("llama")
    save(model.model, tmp_path)
    decoder = load_decoder(tmp_path)
    assert not decoder.config.has_head
    tokens, mask = right_padded([5])
    positions = np.arange(5)[None]
    states = decoder(tokens, mask.astype(int), positions, attention="causal").last_BTD
    assert_close(np.asarray(states), their_states(model, tokens, mask, "causal")[0][-1])
    with pytest.raises(InputError, match="no language-model head"):
        decoder.logits(states)
    save_hf(decoder, tmp_path / "again")
    assert equal(decoder, load_decoder(tmp_path / "again"))
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "again")).__name__ == "LlamaModel"


@pytest.mark.parametrize("variant", ["llama-tied-mha-biases", "llama-yarn", "mistral-window", "qwen2-windows", "qwen3"])
def test_saved_folders_load_in_transformers_with_equal_logits(variant, tmp_path):
    decoder = load_decoder(save(hf_model(variant), tmp_path / "in"))
    save_hf(decoder, tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    tokens, mask = right_padded([7, 4])
    expected = their_states(model.eval(), tokens, mask, "causal")[1]
    assert_close(our_states(decoder, tokens, mask, "causal")[1][mask], expected[mask])
    assert equal(decoder, load_decoder(tmp_path / "out"))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"


def test_bidirectional_is_saved_and_read_back(tmp_path):
    decoder = Decoder(ModelConfig.from_hf(hf_model("llama").config.to_dict() | {"is_causal": False}))
    save_hf(decoder, tmp_path, dtype=jnp.bfloat16)
    again = load_decoder(tmp_path, dtype=None)
    assert not again.config.is_causal
    assert again.embed[...].dtype == jnp.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (4, 2)])
def test_sharded_loading_equals_one_device(fsdp, tensor, tmp_path):
    # One kv head does not divide over tensor=2: it is held by both.
    folder = save(hf_model("qwen2-windows", vocab_size=96), tmp_path)
    mesh = make_mesh(data=1, fsdp=fsdp, tensor=tensor)
    decoder, single = load_decoder(folder, mesh=mesh), load_decoder(folder)
    assert equal(decoder, single)

    def pieces(parameter):
        return parameter[...].size // parameter[...].addressable_shards[0].data.size

    assert pieces(decoder.embed) == 8
    assert pieces(decoder.blocks.q_proj.kernel) == 8
    assert pieces(decoder.blocks.k_proj.kernel) == fsdp
    assert pieces(decoder.blocks.down_proj.kernel) == 8
    assert pieces(decoder.norm.scale) == 1

    tokens, mask = right_padded([9, 4, 9, 9, 2, 9, 9, 9])
    with jax.set_mesh(mesh):
        states, logits = our_states(decoder, tokens, mask, "causal")
    expected, expected_logits = our_states(single, tokens, mask, "causal")
    np.testing.assert_allclose(states[:, mask], expected[:, mask], atol=2e-5)
    np.testing.assert_allclose(logits[mask], expected_logits[mask], atol=1e-4)


def test_adapters_must_be_merged_before_saving(tmp_path):
    from hrsa_jax.models.lora import LoRAConfig, add_lora

    decoder = load_decoder(save(hf_model("llama"), tmp_path))
    with pytest.raises(InputError, match="merge"):
        save_hf(add_lora(decoder, LoRAConfig(rank=2), seed=0), tmp_path / "out")


MEMORY = """
import sys, threading, time
from pathlib import Path
import jax, jax.numpy as jnp
sys.path.insert(0, sys.argv[2])
from tiny_models import load_decoder
from hrsa_jax.runtime.mesh import make_mesh
def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024
mesh = make_mesh(data=1, fsdp=8)
jax.block_until_ready(jnp.ones(8))
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=watch); thread.start()
decoder = load_decoder(Path(sys.argv[1]), mesh=mesh)
jax.block_until_ready(decoder.embed[...])
done = True; thread.join()
print((peak - before) / Path(sys.argv[1], "model.safetensors").stat().st_size)
"""


@pytest.mark.slow
def test_peak_memory_of_a_sharded_load(tmp_path):
    import pathlib
    import subprocess
    import sys

    config = ModelConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 4,  # with a vocabulary of 32,000: 1 GB
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        }
    )
    decoder = Decoder(config)
    save_hf(decoder, tmp_path)
    del decoder
    here = str(pathlib.Path(__file__).parent)
    run = [sys.executable, "-c", MEMORY, str(tmp_path), here]
    ratio = float(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()[-1])
    assert ratio <= 1.3
