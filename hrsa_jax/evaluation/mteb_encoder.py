"""An encoder of ours as mteb sees it: prompts, one encoding per distinct text, exact search with exclusions.

Prompting follows the instruction models of the leaderboard: queries carry "Instruct: ...\\nQuery:\\n", documents are
bare, and in symmetric tasks (classification, clustering, STS, pair classification, bitext, summarisation: mteb says
neither query nor document) every text carries its task's instruction. The prompt is never pooled.
"""

import hashlib
import json
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hrsa_jax.data.prompts import QUERY_TEMPLATE, query_prompt
from hrsa_jax.data.tokenize import tokenize_texts
from hrsa_jax.evaluation.search import Restriction, exact_search

FloatArray = NDArray[np.float32]

_CACHE_BYTES = 512 << 20
_MEMORY_BYTES = 1 << 30  # a corpus with more bytes of vectors than this lies in a temporary file
_INDEX_BLOCK = 8192

# For tasks that bring no instruction of their own.
TYPE_INSTRUCTIONS = {
    "Retrieval": "Given a query, retrieve the passages that answer it",
    "Reranking": "Given a query, retrieve the passages that answer it",
    "InstructionRetrieval": "Given a query, retrieve the passages that answer it",
    "InstructionReranking": "Given a query, retrieve the passages that answer it",
    "Classification": "Classify the text",
    "MultilabelClassification": "Find all the labels that apply to the text",
    "Clustering": "Identify the topic of the text",
    "PairClassification": "Retrieve text that means the same",
    "STS": "Retrieve text with the same meaning",
    "BitextMining": "Retrieve the translation of the sentence",
    "Summarization": "Retrieve a summary with the same meaning",
}


class TextEncoder(Protocol):
    """What MTEBEncoder needs: hrsa_jax.Encoder and the baselines have it."""

    @property
    def fingerprint(self) -> str:
        """Hash of the checkpoint."""

    @property
    def attention(self) -> str:
        """Attention mode."""

    @property
    def max_length(self) -> int | None:
        """Tokens beyond which texts are cut."""

    def encode(self, texts: Sequence[str], prompt: str | None = None) -> FloatArray:
        """Texts (n) to float32 (n, d)."""


class MTEBEncoder:
    """Wraps an encoder for mteb (satisfies its EncoderProtocol and SearchProtocol).

    Args:
        name: one name per model and seed ("base-Emb-s0"): mteb merges rows of equal names. "hrsa_jax/" is put in
            front unless there is a slash.
        encoder: texts -> float32 (n, d), see TextEncoder.
        instructions: task name -> instruction, before the task's own and the task type's.
        template: how an instruction becomes a prompt (data/prompts.py).
        prompts: the model's own prompts (Encoder.prompts), chosen by mteb's rule (task and side, task, type and side,
            type, side) and used as they are, in place of instructions; None: instructions.
        cache_bytes: bound on remembered vectors; the oldest are forgotten first.
    """

    def __init__(
        self,
        name: str,
        encoder: TextEncoder,
        *,
        instructions: Mapping[str, str] | None = None,
        template: str = QUERY_TEMPLATE,
        prompts: Mapping[str, str] | None = None,
        cache_bytes: int = _CACHE_BYTES,
    ):
        self.name = name if "/" in name else f"hrsa_jax/{name}"
        self.encoder = encoder
        self.instructions = dict(instructions or {})
        self.template = template
        self.prompts = None if prompts is None else dict(prompts)
        self.texts_encoded = 0
        self.seen = self.cut = 0  # distinct texts asked for, and those cut at the maximum length; run_tasks resets them
        self._cut_texts: set[int] = set()
        self._cache: OrderedDict[tuple[str, str], FloatArray] = OrderedDict()
        self._cache_bytes, self._cache_limit = 0, cache_bytes
        self._index: tuple[list[str], FloatArray] | None = None

    @property
    def revision(self) -> str:
        """Hash of everything that decides the vectors: mteb's result cache goes by name, revision and task only."""
        facts = [
            self.encoder.fingerprint,
            self.encoder.attention,
            self.encoder.max_length,
            self.template,
            sorted(self.instructions.items()),
            sorted(TYPE_INSTRUCTIONS.items()),
        ]
        if self.prompts is not None:
            facts.append(sorted(self.prompts.items()))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's ModelMeta of this model."""
        from mteb.models.model_meta import ModelMeta

        return ModelMeta.create_empty(
            overwrites={
                "name": self.name,
                "revision": self.revision,
                "max_tokens": self.encoder.max_length,
                "embed_dim": getattr(self.encoder, "dimension", None),
                "use_instructions": True,
                "modalities": ["text"],
            }
        )

    def prompt(self, task_metadata: Any, prompt_type: Any) -> str:
        """The prompt of a text: empty for documents, otherwise the task's instruction in the template."""
        kind = getattr(prompt_type, "value", prompt_type)
        if self.prompts is not None:
            from mteb.models.abs_encoder import get_prompt_name
            from mteb.types import PromptType

            side = PromptType(kind) if kind else None
            return self.prompts.get(get_prompt_name(self.prompts, task_metadata, side) or "", "")
        if kind == "document":
            return ""
        own = task_metadata.prompt
        if isinstance(own, Mapping):
            own = own.get("query")
        instruction = self.instructions.get(task_metadata.name) or own or TYPE_INSTRUCTIONS.get(task_metadata.type)
        return query_prompt((instruction or "").strip(), self.template)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> FloatArray:
        """Vectors of all texts in order, float32 (n, d); each distinct text is encoded once per prompt."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self._vectors(texts, self.prompt(task_metadata, prompt_type), task_metadata.name)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n1, n2) of every pair, a torch tensor."""
        import torch

        return torch.from_numpy(_unit(embeddings1) @ _unit(embeddings2).T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines (n,) of rows at the same place, a torch tensor."""
        import torch

        return torch.from_numpy(np.sum(_unit(embeddings1) * _unit(embeddings2), axis=1))

    def index(self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **options: Any) -> None:
        """Encodes a corpus block by block; a very large one is kept in a temporary file."""
        ids = [str(i) for i in corpus["id"]]
        vectors: FloatArray | None = None
        for start in range(0, len(ids), _INDEX_BLOCK):
            rows = corpus.select(range(start, min(start + _INDEX_BLOCK, len(ids))))
            block = self._texts_of(rows, task_metadata, "document", options)
            encoded = _unit(self._vectors(block, self.prompt(task_metadata, "document"), task_metadata.name))
            if vectors is None:
                vectors = _storage(len(ids), encoded.shape[1])
            vectors[start : start + len(encoded)] = encoded
        if vectors is None:
            raise ValueError(f"the corpus of {task_metadata.name} is empty")
        self._index = (ids, vectors)

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> dict[str, dict[str, float]]:
        """The top_k documents of every query with their cosines; `top_ranked` restricts what a query may find.

        BRIGHT passes nearly the whole corpus as each query's candidates to leave a few documents out: that becomes
        a mask over the scores, never a copy of the corpus.
        """
        if self._index is None:
            raise ValueError("search was called before index")
        ids, vectors = self._index
        self._index = None
        query_ids = [str(i) for i in queries["id"]]
        texts = self._texts_of(queries, task_metadata, "query", options)
        encoded = _unit(self._vectors(texts, self.prompt(task_metadata, "query"), task_metadata.name))
        restriction = None if top_ranked is None else Restriction(ids, [top_ranked.get(q, ()) for q in query_ids])
        found = exact_search(encoded, vectors, top_k, restriction=restriction)
        return {
            query: {ids[place]: float(score) for place, score in zip(*row, strict=True)}
            for query, row in zip(query_ids, found, strict=True)
        }

    def _texts_of(self, rows: Any, task_metadata: Any, kind: str, options: Mapping[str, Any]) -> list[str]:
        """Texts as mteb joins them: title and text of a document, query and instruction, conversation turns."""
        from mteb._create_dataloaders import create_dataloader
        from mteb.types import PromptType

        batch_size = int((options.get("encode_kwargs") or {}).get("batch_size", 32))
        loader = create_dataloader(
            rows, task_metadata=task_metadata, prompt_type=PromptType(kind), batch_size=max(batch_size, 256)
        )
        return [text for batch in loader for text in batch["text"]]

    def _vectors(self, texts: Sequence[str], prompt: str, task: str) -> FloatArray:
        """Float32 (n, d), from the cache where possible, checked for shape and finiteness."""
        distinct = list(dict.fromkeys(texts))
        known = {text: self._cache[prompt, text] for text in distinct if (prompt, text) in self._cache}
        new = [text for text in distinct if text not in known]
        if new:
            encoded = np.asarray(self.encoder.encode(new, prompt=prompt or None), dtype=np.float32)
            if encoded.ndim != 2 or len(encoded) != len(new):
                raise ValueError(f"{self.name} returned shape {encoded.shape} for {len(new)} texts of {task}")
            finite = np.isfinite(encoded).all(axis=1)
            if not finite.all():
                text = new[int(np.argmin(finite))]
                raise FloatingPointError(
                    f"{self.name} gave {int((~finite).sum())} vectors with NaN or infinity in {task}, the first for "
                    f"{' '.join(text.split())[:60]!r}"
                )
            self.texts_encoded += len(new)
            self._cut_texts.update(hash((prompt, text)) for text in truncated_texts(self.encoder, new, prompt))
            known.update(zip(new, encoded, strict=True))
            self._remember(prompt, new, encoded)
        self.seen += len(distinct)
        self.cut += sum(hash((prompt, text)) in self._cut_texts for text in distinct)
        return np.stack([known[text] for text in texts]) if texts else np.zeros((0, 0), np.float32)

    def _remember(self, prompt: str, texts: Sequence[str], vectors: FloatArray) -> None:
        if vectors.nbytes > self._cache_limit // 2:
            return  # one huge corpus would push everything else out
        for text, vector in zip(texts, vectors, strict=True):
            self._cache[prompt, text] = vector
            self._cache_bytes += vector.nbytes + len(text) + len(prompt)
        while self._cache_bytes > self._cache_limit:
            (old_prompt, old_text), vector = self._cache.popitem(last=False)
            self._cache_bytes -= vector.nbytes + len(old_text) + len(old_prompt)


def truncated_texts(encoder: TextEncoder, texts: Sequence[str], prompt: str) -> list[str]:
    """The texts that an encoder with a tokenizer (hrsa_jax.Encoder) cuts at its maximum length."""
    backbone, longest = getattr(encoder, "backbone", None), encoder.max_length
    if backbone is None or longest is None:
        return []
    room = longest - len(prompt) - 8  # special tokens; plain text has at most a token a character
    long = [text for text in texts if len(text) > room or not text.isascii()]
    if not long:
        return []
    tokens = tokenize_texts(backbone.tokenizer, long, prompt=prompt, max_length=longest)
    return [text for text, cut in zip(long, tokens.truncated, strict=True) if cut]


def _unit(vectors: Any) -> FloatArray:
    """Rows of unit length, float32 (n, d); a zero row stays zero, a single vector becomes one row."""
    rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _storage(rows: int, dimension: int) -> FloatArray:
    if 4 * rows * dimension <= _MEMORY_BYTES:
        return np.empty((rows, dimension), np.float32)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the unnamed file alive, and its end frees the disk
        return np.memmap(file, np.float32, "w+", shape=(rows, dimension))
