"""What the stages of a run share: its folder, its voice, its devices, and its models, loaded when first needed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, cast

import jax
from jax.sharding import Mesh

from hrsa_jax.models.backbone import Backbone, load
from hrsa_jax.runtime.checkpoint import check_bucket
from hrsa_jax.runtime.config import to_json
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.logging import RunLog
from hrsa_jax.runtime.mesh import make_mesh
from hrsa_jax.runtime.workdir import Stage, Workdir, read_json

Attention = Literal["causal", "bidirectional"]


@dataclass(frozen=True)
class MeshConfig:
    """Devices on each axis; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def device_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh over all devices; None where there is one device only."""
    return make_mesh(**to_json(config)) if jax.device_count() > 1 else None


@dataclass(frozen=True)
class Model:
    """A model of the study by its report name.

    name: base, reasoning, base-Emb or reasoning-Emb. source: a model source string, or `stages/...` below the
    workdir. fingerprint: of weights, config and tokenizer. attention: its native mode. seed: of the conversion; None
    for backbones.
    """

    name: str
    source: str
    fingerprint: str
    attention: Attention
    parameters: int
    layers: int
    width: int
    seed: int | None = None

    @property
    def key(self) -> str:
        """Name with its seed, for stage folders and mteb: `base-Emb-s0`."""
        return self.name if self.seed is None else f"{self.name}-s{self.seed}"


@dataclass
class Run:
    """One run: `load` keeps the last `capacity` models in memory, split over `mesh` where there is one.

    checkpoints: gs:// address that training checkpoints go to; empty: the stages' folders in the workdir.
    """

    workdir: Workdir
    log: RunLog
    capacity: int = 2
    mesh: Mesh | None = None
    checkpoints: str = ""
    _loaded: OrderedDict[str, Backbone] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        if self.checkpoints:
            check_bucket(self.checkpoints)

    def bucket(self, stage: Stage) -> str:
        """Address of a stage's checkpoints; empty: its folder.

        The fingerprint stands in it because a stage whose inputs changed starts in a clean folder, and nobody cleans
        the bucket: it must not continue what other inputs left there.
        """
        if not self.checkpoints:
            return ""
        return f"{self.checkpoints.rstrip('/')}/stages/{stage.name}/{stage.fingerprint}"

    def load(self, source: str) -> Backbone:
        """The backbone of `source`."""
        if source not in self._loaded:
            while len(self._loaded) >= self.capacity:
                self._loaded.popitem(last=False)
            path = self.workdir.path / source if source.startswith("stages/") else source
            self._loaded[source] = load(path, mesh=self.mesh)
            if source.startswith("stages/"):
                self._check(source, self._loaded[source])
        self._loaded.move_to_end(source)
        return self._loaded[source]

    def _check(self, source: str, backbone: Backbone) -> None:
        """Refuses a model whose files are no longer those that its finished stage wrote."""
        folder = (self.workdir.path / source).parent
        result = read_json(folder / "done.json")["result"] if (folder / "done.json").exists() else None
        told = result.get("fingerprint") if isinstance(result, dict) else None
        if told is not None and told != backbone.fingerprint:
            del self._loaded[source]
            raise InputError(
                f"{self.workdir.path / source} is not the model that its stage wrote (fingerprint "
                f"{backbone.fingerprint}, was {told}): delete {folder} to make it again"
            )

    def model(self, name: str, source: str) -> Model:
        """Loads `source` and describes it under a report name."""
        backbone = self.load(source)
        config = backbone.config
        return Model(
            name,
            source,
            backbone.fingerprint,
            cast(Attention, backbone.attention),
            int(backbone.num_parameters),
            config.num_layers,
            config.hidden_size,
        )
