"""Low-rank adapters (LoRA, arXiv 2106.09685) inside the stacked linear layers: y = x W + scale (x A) B.

L layers, r rank; A is (L, in, r), B is (L, r, out), scale = alpha / r. B starts at zero, so a fresh adapter changes
nothing. Files are PEFT's (adapter_config.json, adapter_model.safetensors), readable by either side.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import to_host

if TYPE_CHECKING:
    from hrsa_jax.models.decoder import Decoder, Linear

# name of a linear layer -> the module that holds it in a Hugging Face block
TARGETS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
_FACTORS = {"lora_A": "a", "lora_B": "b"}
# PEFT options that would change the numbers and are refused unless empty or off
_CHANGES_THE_NUMBERS = [
    "bias",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layer_replication",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "lora_bias",
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
]
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class LoRAConfig:
    """Which layers get adapters, their rank, and alpha (the update is scaled by alpha / rank)."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets or not math.isfinite(self.alpha):
            raise InputError(
                f"LoRA: rank={self.rank}, alpha={self.alpha}, targets={self.targets}: "
                "give a rank of at least 1, a finite alpha and at least one layer name"
            )
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown:
            raise InputError(
                f"LoRA: unknown layer {', '.join(map(repr, unknown))} in targets: "
                f"the linear layers are {', '.join(TARGETS)}"
            )


class LoRA(nnx.Module):
    """The two factors of one stacked linear layer; `scale` is fixed."""

    def __init__(self, a: jax.Array, b: jax.Array, scale: float):
        self.a = nnx.LoRAParam(a, logical_axes=(None,) * a.ndim, units=a.shape)
        self.b = nnx.LoRAParam(b, logical_axes=(None,) * b.ndim, units=b.shape)
        self.scale = scale


def stacked_linears(decoder: "Decoder") -> dict[str, "Linear"]:
    """The stacked linear layers of the blocks by name, in the order of TARGETS."""
    return {name: getattr(decoder.blocks, name) for name in TARGETS}


def has_lora(decoder: "Decoder") -> bool:
    """True when at least one layer has adapters."""
    return any(linear.lora is not None for linear in stacked_linears(decoder).values())


def _adapters(decoder: "Decoder") -> dict[str, LoRA]:
    found = {name: linear.lora for name, linear in stacked_linears(decoder).items() if linear.lora is not None}
    if not found:
        raise ValueError("decoder has no adapters: call add_lora or load_adapter first")
    return found


def add_lora(decoder: "Decoder", config: LoRAConfig, *, seed: int) -> "Decoder":
    """A decoder that shares every weight with `decoder` and has fresh adapters.

    Args:
        decoder: without adapters; it is left as it is.
        config: ranks, scale and layer names.
        seed: A is uniform in +-1/sqrt(in) (PEFT's initialisation), a function of the seed and the layer's name.
    """
    decoder = remove_lora(decoder)
    for number, (name, linear) in enumerate(stacked_linears(decoder).items()):
        if name not in config.targets:
            continue
        layers, inputs, outputs = linear.kernel[...].shape
        key = jax.random.fold_in(jax.random.key(seed), number)
        bound = 1 / math.sqrt(inputs)
        a = jax.random.uniform(key, (layers, inputs, config.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((layers, config.rank, outputs), jnp.float32)
        _attach(linear, a, b, config.alpha / config.rank)
    return decoder


def _attach(linear: "Linear", a: Any, b: Any, scale: float) -> None:
    sharding = getattr(linear.kernel[...], "sharding", None)  # a kernel that is only traced has none
    if isinstance(sharding, jax.sharding.NamedSharding):  # factors are small: every device holds them whole
        replicated = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
        a, b = jax.device_put(a, replicated), jax.device_put(b, replicated)
    linear.lora = nnx.data(LoRA(jnp.asarray(a), jnp.asarray(b), scale))


def remove_lora(decoder: "Decoder") -> "Decoder":
    """The same decoder without adapters, sharing its weights: the exact base, whatever was trained."""
    decoder = nnx.clone(decoder)  # new Python objects around the same (immutable) arrays
    for linear in stacked_linears(decoder).values():
        linear.lora = nnx.data(None)
    return decoder


def merge_lora(decoder: "Decoder") -> "Decoder":
    """A decoder without adapters whose kernels are W + scale A B, added in float32 at full precision.

    `decoder` keeps its adapters and its base kernels, so `remove_lora(decoder)` undoes the merge exactly.
    """
    return _shifted(decoder, decoder, 1.0)


def unmerge_lora(merged: "Decoder", adapted: "Decoder") -> "Decoder":
    """Takes the adapters of `adapted` out of merged kernels again; exact up to one rounding of the kernel."""
    return _shifted(merged, adapted, -1.0)


def _shifted(decoder: "Decoder", adapted: "Decoder", sign: float) -> "Decoder":
    result = remove_lora(decoder)
    targets = stacked_linears(result)
    for name, lora in _adapters(adapted).items():
        kernel = targets[name].kernel
        kernel[...] = _shift(kernel[...], lora.a[...], lora.b[...], sign * lora.scale)
    return result


@jax.jit
def _shift(kernel_LIO: jax.Array, a_LIR: jax.Array, b_LRO: jax.Array, scale: float) -> jax.Array:
    delta_LIO = jnp.matmul(a_LIR.astype(jnp.float32), b_LRO.astype(jnp.float32), precision="highest")
    return (kernel_LIO.astype(jnp.float32) + scale * delta_LIO).astype(kernel_LIO.dtype)


def split_trainable(decoder: "Decoder", *, lora: bool) -> tuple[Any, Any, Any]:
    """Splits a decoder for training: gradients are taken with respect to the first state only.

    Args:
        decoder: with adapters when `lora`.
        lora: True trains the adapters and freezes everything else; False trains every parameter.

    Returns:
        (graphdef, trainable state, frozen state); `nnx.merge(graphdef, trainable, frozen)` is the decoder.
    """
    if lora:
        _adapters(decoder)
    graphdef, *states = nnx.split(decoder, nnx.LoRAParam if lora else nnx.Param, ...)
    return graphdef, states[0], states[1]


def save_adapter(decoder: "Decoder", folder: Path | str, *, base: str = "") -> None:
    """Writes the adapters in PEFT's format.

    Args:
        decoder: with adapters of one rank and scale.
        folder: created when missing.
        base: what PEFT notes as `base_model_name_or_path`.
    """
    from safetensors.numpy import save_file

    adapters = _adapters(decoder)
    tensors: dict[str, np.ndarray] = {}
    for name, lora in adapters.items():
        for factor, attribute in _FACTORS.items():
            stacked = to_host(getattr(lora, attribute)[...]).astype(np.float32)
            for layer, matrix in enumerate(stacked):  # PEFT stores (out, in), as torch.nn.Linear does
                tensors[_key(layer, name, factor)] = np.ascontiguousarray(matrix.T)
    first = next(iter(adapters.values()))
    rank = int(first.a[...].shape[-1])
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": 0.0,
        "target_modules": list(adapters),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _key(layer: int, name: str, factor: str) -> str:
    return f"base_model.model.model.layers.{layer}.{TARGETS[name]}.{name}.{factor}.weight"


def load_adapter(decoder: "Decoder", folder: Path | str) -> "Decoder":
    """A decoder that shares the weights of `decoder` and has the adapters stored in a PEFT folder.

    Raises:
        InputError: a missing or broken file, a PEFT option that is not supported, or tensors that do not fit; all
            misfits are named at once.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    config, scale = _read_config(folder / _CONFIG)
    try:
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / _WEIGHTS} cannot be read ({error}): save the adapter again") from None
    decoder = remove_lora(decoder)
    expected: set[str] = set()
    problems: list[str] = []
    for name, linear in stacked_linears(decoder).items():
        if name not in config.targets:
            continue
        layers, inputs, outputs = linear.kernel[...].shape
        shapes = {"lora_A": (config.rank, inputs), "lora_B": (outputs, config.rank)}
        stacked: dict[str, list[np.ndarray]] = {factor: [] for factor in _FACTORS}
        for layer in range(layers):
            for factor, shape in shapes.items():
                key = _key(layer, name, factor)
                expected.add(key)
                found = tensors.get(key)
                if found is None:
                    problems.append(f"{key} is missing")
                elif found.shape != shape:
                    problems.append(f"{key} has shape {found.shape}, not {shape}")
                else:
                    stacked[factor].append(np.asarray(found, np.float32).T)
        if not problems:
            _attach(linear, np.stack(stacked["lora_A"]), np.stack(stacked["lora_B"]), scale)
    problems += [f"{key} is not expected" for key in sorted(set(tensors) - expected)]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise InputError(
            f"{folder / _WEIGHTS} does not fit this model: {'; '.join(problems[:8])}{more}: "
            "load it on the backbone it was trained on"
        )
    return decoder


def _read_config(path: Path) -> tuple[LoRAConfig, float]:
    """The adapter's config and its scale; every PEFT option that would change the numbers is used or refused."""
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder written by save_adapter or by PEFT") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): save the adapter again") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} does not hold a JSON object: save the adapter again")
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {raw.get('peft_type')!r}: only LORA adapters are read")
    for name in _CHANGES_THE_NUMBERS:
        if raw.get(name) not in (None, False, "none", [], {}):
            raise InputError(f"{path}: {name} is {raw[name]!r}, which is not supported: train without it")
    targets = raw.get("target_modules")
    if targets == "all-linear":
        targets = list(TARGETS)
    rank, alpha = raw.get("r"), raw.get("lora_alpha", raw.get("r"))
    if (
        not isinstance(targets, list)
        or not all(isinstance(name, str) for name in targets)
        or not isinstance(rank, int)
        or rank < 1
    ):
        raise InputError(f"{path}: r and target_modules (a list of layer names) are needed: save the adapter again")
    if not isinstance(alpha, int | float) or not 0 < alpha < 1 << 53 or rank >= 1 << 53:
        raise InputError(f"{path}: r or lora_alpha is no number that a training could use: save the adapter again")
    config = LoRAConfig(rank, float(alpha), tuple(targets))
    divisor = math.sqrt(config.rank) if raw.get("use_rslora") else config.rank
    return config, config.alpha / divisor
