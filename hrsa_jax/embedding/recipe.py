"""The conversion recipe: what both models of a pair share, together with the optimiser's and the adapters' settings."""

import dataclasses
from typing import Literal

import jax

from hrsa_jax.data.prompts import QUERY_TEMPLATE, query_prompt
from hrsa_jax.embedding.pooling import Pooling
from hrsa_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True)
class ConversionConfig:
    """How a backbone becomes an embedding model.

    The length of the run is `steps`, or `epochs` over the data. The batch is computed in one piece, or in `chunks`
    parts, or in parts of at most `chunk_tokens` token slots: memory is that of one part, the numbers are the same.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 16  # queries a step, over all devices
    hard_negatives: int = 3
    temperature: float = 0.02
    symmetric: bool = False  # passages find their queries, too
    matryoshka: tuple[int, ...] = ()  # sizes the loss is averaged over; none: the whole vector only
    distillation_weight: float = 0.0  # of KL(teacher || student) over a query's own passages
    distillation_temperature: float = 0.02  # of the teacher's scores
    pooling: Pooling = "mean"
    attention: Literal["causal", "bidirectional"] = "bidirectional"
    template: str = QUERY_TEMPLATE
    max_query_length: int = 512  # tokens, instruction included
    max_passage_length: int = 512
    layout: Literal["auto", "packed", "bucketed"] = "auto"  # auto: bucketed on GPU, packed elsewhere
    attention_kernel: Literal["auto", "xla", "blocked", "cudnn", "splash"] = "auto"
    row_length: int | None = None  # tokens a packed row; None takes the length that wastes least
    max_segments: int = 32  # texts a packed row
    chunks: int = 1
    chunk_tokens: int | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the computation; master weights stay float32
    remat: bool = True
    mixing_exponent: float = 1.0
    leftovers: Literal["drop", "mix"] = "drop"  # rows of an epoch that fill no batch of their data set
    mask_false_negatives: bool = True  # passages known (by text or id) to answer a query are no negatives of it
    false_negative_margin: float | None = None  # nor are those that score above its positive by more than this
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "chunks", "max_query_length", "max_passage_length", "max_segments"):
            if getattr(self, name) < 1:
                raise InputError(f"The conversion has {name}={getattr(self, name)}; it must be at least 1.")
        if (self.steps is None) == (self.epochs is None) or (self.steps or self.epochs or 0) <= 0:
            raise InputError(
                f"The conversion has steps={self.steps} and epochs={self.epochs}; give one of the two, above 0."
            )
        if self.chunk_tokens is not None and (self.chunks != 1 or self.chunk_tokens < 1):
            raise InputError(
                f"The conversion has chunks={self.chunks} and chunk_tokens={self.chunk_tokens}; give one of the two."
            )
        if self.temperature <= 0 or self.distillation_temperature <= 0 or self.distillation_weight < 0:
            raise InputError("The conversion has a temperature that is not positive or a negative distillation_weight.")
        query_prompt("", self.template)  # refuses a template without its place for the instruction

    def total_steps(self, steps_per_epoch: int) -> int:
        """Updates of the whole run, given the batches of one epoch."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))

    def chunk_count(self, rows: int, row_length: int) -> int:
        """Equal parts that an array of `rows` x `row_length` token slots is encoded in."""
        if self.chunk_tokens is None:
            return self.chunks
        least = max(1, -(-rows * row_length // self.chunk_tokens))
        return next((count for count in range(least, rows) if rows % count == 0), rows)

    @property
    def bucketed(self) -> bool:
        """Whether each text has a row of its own, in length buckets, instead of a segment of a packed row."""
        if self.layout == "auto":
            return jax.default_backend() == "gpu"
        return self.layout == "bucketed"

    @property
    def segments(self) -> int:
        """Texts that a row can hold."""
        return 1 if self.bucketed else self.max_segments
