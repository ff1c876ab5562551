"""Memory, FLOPs, communication and time of a conversion on given hardware, and the price of a study, before it is run.

python launch.py --config=configs/plan.py --config.hardware=H100 --config.devices=8

The training step is traced, partitioned and compiled for simulated devices (embedding/cost.py); hardware numbers are
the makers' (runtime/hardware.py); the utilisation is an assumption of the config and is printed as one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from hrsa_jax.embedding.cost import bytes_over_axes, seconds_over_axes
from hrsa_jax.embedding.fit import Fit, Workload, best_fit, fit, mesh_shapes, traffic
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.decoder import Decoder
from hrsa_jax.models.gguf import GGUFFile, config_fields
from hrsa_jax.models.lora import LoRAConfig
from hrsa_jax.models.safetensors_files import read_json
from hrsa_jax.models.source import resolve
from hrsa_jax.runtime.config import build
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.flops import training_flops_per_token
from hrsa_jax.runtime.hardware import Hardware, hardware, link_bandwidths
from hrsa_jax.runtime.logging import counted, duration, print_facts
from hrsa_jax.runtime.optim import OptimConfig

Lines = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class MeshSizes:
    """All 0: the plan chooses."""

    data: int = 0
    fsdp: int = 0
    tensor: int = 0


@dataclass(frozen=True)
class TextLengths:
    """Mean tokens of a query (with its instruction) and a passage; share of a batch's slots that is padding."""

    query: int = 40
    passage: int = 130
    padding: float = 0.05
    row_length: int = 512

    def __post_init__(self) -> None:
        if min(self.query, self.passage, self.row_length) < 1 or not 0 <= self.padding < 1:
            raise InputError(
                f"config.texts: query={self.query}, passage={self.passage}, row_length={self.row_length}, "
                f"padding={self.padding}: lengths are at least 1 and padding is a share below 1"
            )


@dataclass(frozen=True)
class StudySizes:
    """A study of a pair: each of two backbones is converted with every seed, and all of them are evaluated.

    evaluation_tokens: of the benchmark, for one model. hrsa_tokens: rows of each model that HRSA compares.
    """

    pairs: int = 1_660_000
    seeds: int = 3
    evaluation_tokens: float = 2e9
    hrsa_tokens: int = 125_000


@dataclass(frozen=True)
class PlanConfig:
    """model: a name in `architectures` (config.json fields and a name), or a model source."""

    model: str
    recipe: ConversionConfig
    optim: OptimConfig
    hardware: str
    devices: int
    architectures: tuple[dict[str, Any], ...] = ()
    lora: LoRAConfig | None = None
    mesh: MeshSizes = field(default_factory=MeshSizes)
    texts: TextLengths = field(default_factory=TextLengths)
    study: StudySizes = field(default_factory=StudySizes)
    memory_share: float = 0.9
    mfu: float = 0.4
    encode_mfu: float = 0.4

    def __post_init__(self) -> None:
        for name in ("memory_share", "mfu", "encode_mfu"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"config.{name}={getattr(self, name)}: give a share above 0 and at most 1")
        if self.devices < 1:
            raise InputError(f"config.devices={self.devices}: give at least one device")


def run(config: dict[str, Any]) -> int:
    """Prints the plan; returns the exit status."""
    started = time.monotonic()
    setting = build(PlanConfig, config)
    item, model = hardware(setting.hardware), architecture(setting)
    simulate(setting.devices)
    plan = Plan(setting, item, model)
    lines = [*plan.assumptions(), *plan.memory(), *plan.step(), *plan.study()]
    print_facts([*lines, ("planned in", duration(time.monotonic() - started))])
    return 0


def architecture(setting: PlanConfig) -> ModelConfig:
    """The sizes of config.model: from the config's own table, or from a checkpoint's config.json or header."""
    for fields in setting.architectures:
        if fields.get("name") == setting.model:
            sizes = {name: value for name, value in fields.items() if name != "name"}
            return ModelConfig.from_hf(sizes, where=f"config.architectures, {setting.model}")
    try:
        found = resolve(setting.model)
    except InputError as error:
        known = ", ".join(str(fields.get("name")) for fields in setting.architectures)
        raise InputError(f"{error} (names that need no files: {known})") from None
    if found.kind == "gguf":
        return ModelConfig.from_hf(config_fields(GGUFFile(found.path)), where=str(found.path))
    path = Path(found.path) / "config.json"
    return ModelConfig.from_hf(read_json(path), where=str(path))


def simulate(devices: int) -> None:
    """Makes this process see so many CPU devices.

    Raises:
        InputError: JAX has started already, with fewer.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        pass  # started: what it has must do
    if jax.device_count() < devices:
        raise InputError(
            f"config.devices={devices}, but JAX runs with {counted(jax.device_count(), 'device')} in this process: "
            "start the plan by launch.py, without JAX_NUM_CPU_DEVICES"
        )


class Plan:
    """One conversion step on one mesh, compiled, and what follows from it."""

    def __init__(self, setting: PlanConfig, item: Hardware, model: ModelConfig):
        self.setting, self.item, self.model = setting, item, model
        recipe, texts = setting.recipe, setting.texts
        self.tokens = recipe.batch_size * (texts.query + (1 + recipe.hard_negatives) * texts.passage)
        slots = round(self.tokens / (1 - texts.padding))
        load = Workload(model, recipe, setting.optim, setting.lora, slots, texts.row_length)
        budget, sizes = setting.memory_share * item.memory, setting.mesh
        if (sizes.data, sizes.fsdp, sizes.tensor) == (0, 0, 0):
            shapes = list(mesh_shapes(setting.devices, model.num_kv_heads))
            self.fit: Fit = best_fit(load, item, shapes, budget)
        else:
            shape = {"data": sizes.data, "fsdp": sizes.fsdp, "tensor": sizes.tensor}
            if min(shape.values()) < 1 or prod(shape.values()) != setting.devices:
                raise InputError(
                    f"config.mesh {shape} does not fit {counted(setting.devices, 'device')}: give three positive "
                    f"sizes whose product is {setting.devices}, or 0 for all three"
                )
            self.fit = fit(load, shape, budget)
        self.load = load
        decoder = nnx.eval_shape(lambda: Decoder(model))
        self.layers = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder.blocks)))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder)))

    def assumptions(self) -> Lines:
        """What was asked and what is taken for granted."""
        setting, item, texts, recipe = self.setting, self.item, self.setting.texts, self.setting.recipe
        kind = "every weight" if setting.lora is None else f"LoRA of rank {setting.lora.rank}"
        yield "model", f"{setting.model}: {_count(self.parameters)} parameters, {self.model.num_layers} layers"
        yield "training", f"{kind}, {setting.optim.optimizer}, {recipe.dtype} with float32 masters"
        yield (
            "hardware",
            f"{setting.devices} x {item.name}: {item.bf16_flops / 1e12:.0f} TFLOP/s, {item.memory / 1e9:.0f} GB, "
            f"{item.link / 1e9:.0f} GB/s a link among {item.domain}, {item.network / 1e9:g} GB/s beyond",
        )
        yield (
            "batch",
            f"{recipe.batch_size} queries of {texts.query} tokens, {1 + recipe.hard_negatives} passages each of "
            f"{texts.passage}; {texts.padding:.0%} padding, rows of {texts.row_length}",
        )
        yield (
            "assumed",
            f"MFU {setting.mfu:.0%} in training, {setting.encode_mfu:.0%} in encoding; {setting.memory_share:.0%} of "
            "memory usable; buffers as the CPU compiler lays them out",
        )

    def memory(self) -> Lines:
        """Bytes of one device."""
        found = self.fit
        chunk = found.rows // found.chunks * self.load.row_length
        pieces = "the whole step in one piece" if found.chunks == 1 else f"{found.chunks} chunks a step"
        yield "mesh", " x ".join(f"{axis} {size}" for axis, size in found.mesh_shape.items()) + self._chosen()
        yield (
            "chunk",
            f"{chunk * found.group:,} token slots, {chunk:,} a device; {pieces} "
            f"(--config.convert.recipe.chunk_tokens={chunk * found.group})",
        )
        for name, size in found.arrays.bytes_per_device.items():
            yield f"  {name}", f"{_gigabytes(size)} a device"
        yield (
            "  activations",
            f"{_gigabytes(self._activations())} a device, gathered weights and the chunk's sums included",
        )
        share = found.cost.total / self.item.memory
        beyond = "" if found.larger is None else f"; {found.chunks - 1} a step would take {_gigabytes(found.larger)}"
        yield "memory", f"{_gigabytes(found.cost.total)} a device ({share:.0%}), by compiled memory analysis{beyond}"
        off = found.expected / found.cost.total - 1
        yield "  predicted", f"{_gigabytes(found.expected)} before it was compiled ({off:+.1%})"

    def _activations(self) -> float:
        held = self.fit.arrays.bytes_per_device
        return max(0.0, self.fit.cost.temporary - held["gradients"])

    def _chosen(self) -> str:
        sizes = self.setting.mesh
        return "" if sizes.data else "  (recommended: the least computing and sending that fits)"

    def step(self) -> Lines:
        """FLOPs, bytes and seconds of one update."""
        setting, found, item = self.setting, self.fit, self.item
        trained = self.layers if setting.lora is None else 0
        model_flops = training_flops_per_token(self.layers, trained) * self.tokens
        yield (
            "FLOPs a step",
            f"{model_flops:.3g} of the model; {found.cost.flops:.3g} computed (recomputation, attention, padding), so "
            f"that MFU cannot exceed {model_flops / found.cost.flops:.0%}",
        )
        speeds = link_bandwidths(item, found.mesh_shape)
        formula = bytes_over_axes(traffic(self.load, found.mesh_shape, found.rows, found.chunks))
        for axes, size in formula.items():
            yield f"bytes over {' and '.join(axes)}", f"{_gigabytes(size)} a device and step"
        if found.cost.traffic:
            here = sum(bytes_over_axes(found.cost.traffic).values())
            plain = traffic(self.load, found.mesh_shape, found.rows, found.chunks, reduce_scatter=False)
            said = sum(bytes_over_axes(plain).values())
            yield "  compiled here", f"{_gigabytes(here)}; {_gigabytes(said)} by the formula without reduce-scatter"
        computing = model_flops / (setting.mfu * item.bf16_flops * setting.devices)
        sending = seconds_over_axes(formula, speeds)
        self.seconds = max(computing, sending)
        yield (
            "seconds a step",
            f"{self.seconds:.2f}: {computing:.2f} computing at MFU {setting.mfu:.0%}, {sending:.2f} sending; "
            f"{computing + sending:.2f} if nothing overlaps",
        )
        yield (
            "tokens/s",
            f"{self.tokens / self.seconds:,.0f}, {self.tokens / self.seconds / setting.devices:,.0f} a device",
        )

    def study(self) -> Lines:
        """Device-hours of a whole study of a pair; `step` comes first."""
        setting, sizes, devices = self.setting, self.setting.study, self.setting.devices
        recipe = setting.recipe
        steps = recipe.total_steps(sizes.pairs // recipe.batch_size)
        conversions = 2 * sizes.seeds
        hours = steps * self.seconds * devices / 3600
        yield "one conversion", f"{steps:,} steps, {steps * self.tokens:.3g} tokens, {hours:.1f} device-hours"
        encoding = 2.0 * self.layers / (setting.encode_mfu * self.item.bf16_flops) / 3600
        evaluated = (2 + conversions) * sizes.evaluation_tokens
        compared = self._hrsa_hours(sizes.hrsa_tokens, encoding)
        yield (
            "conversions",
            f"{conversions} (two backbones, {counted(sizes.seeds, 'seed')}): {conversions * hours:.1f} device-hours",
        )
        yield (
            "evaluation",
            f"{evaluated:.3g} tokens of {2 + conversions} models: {evaluated * encoding:.1f} device-hours",
        )
        yield (
            "HRSA",
            f"2 pairs on {sizes.hrsa_tokens:,} tokens: {2 * compared * 3600:,.0f} device-seconds of products, at "
            f"{setting.encode_mfu:.0%} of the peak in float32",
        )
        total = conversions * hours + evaluated * encoding + 2 * compared
        yield "whole study", f"{total:.1f} device-hours, {total / devices:.1f} hours on {counted(devices, 'device')}"

    def _hrsa_hours(self, n: int, encoding: float) -> float:
        """Of one pair: states of both models, then CKA of all pairs of layers and neighbours of every layer."""
        states, width = self.model.num_layers + 1, self.model.hidden_size
        covariances = 2.0 * n * width**2 * states * (states + 2)
        gram = 2.0 * n**2 * width * 2 * states
        neighbours = 2.0 * n**2 * width * 2 * states
        products = min(covariances, gram) + neighbours
        return 2 * n * encoding + products / (self.setting.encode_mfu * self.item.float32_flops) / 3600


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.3f} MB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
