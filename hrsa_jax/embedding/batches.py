"""The batches of a conversion: texts drawn, tokenised and laid out for each step, and what is known of the data.

A batch is a pure function of (seed, step) and is made when it is asked for: no token ids are kept, so that memory
does not grow with the data. Q queries, P passages, K passages drawn for one query, N distinct texts.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hrsa_jax.data.leaks import normalised_hash
from hrsa_jax.data.packing import Array, PackedRows
from hrsa_jax.data.prompts import query_prompt
from hrsa_jax.data.sampler import MIXED, Group, PairSampler, data_order_hash, purity
from hrsa_jax.data.sources import Pair
from hrsa_jax.data.tokenize import TokenizedTexts, tokenize_texts
from hrsa_jax.embedding.layout import Plan, lay_out, make_plan
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.runtime.errors import InputError

_PLANNED_STEPS = 64  # steps whose texts decide the shapes and the token statistics

#: a text as it is tokenised: its prompt (None for a passage) and itself
Key = tuple[str | None, str]


class ContrastiveBatch(NamedTuple):
    """One step's arrays. Slots index the pooled vectors of all blocks, flattened and put one behind the other."""

    blocks: tuple[PackedRows, ...]
    query_slot_Q: Array
    passage_slot_P: Array  # group by group: the positive, then its hard negatives
    positive_Q: Array
    mask_QP: Array  # False: not a negative for this query
    teacher_QK: Array | None  # a teacher's scores of each query's own passages; NaN: none
    tokens: Array  # float32 (): of the texts, without padding
    purity: Array  # float32 (): share of the most frequent data set


def conversion_batches(
    pairs: Sequence[Pair] | Mapping[str, Sequence[Pair]],
    tokenizer: Any,
    config: ConversionConfig,
    *,
    row_multiple: int = 1,
) -> tuple[Callable[[int], ContrastiveBatch], dict[str, Any]]:
    """Prepares the batches of a whole run.

    Args:
      pairs: training rows, in one sequence or by data set; rows are read when their batch is made.
      tokenizer: a transformers fast tokenizer.
      config: the recipe.
      row_multiple: rows of each part that is encoded at once are a multiple of this (devices that split them).

    Returns:
      batch_at: step -> ContrastiveBatch of numpy arrays; pure.
      stats: JSON values: sizes, lengths, shares truncated and padded, purity, steps, data_order_hash. Token numbers
        are of the first steps (`token_statistics_steps` of them), everything else of the whole run.

    Raises:
      InputError: a data set smaller than a batch, an empty text, an instruction that fills the maximum length.
    """
    sampler = PairSampler(
        pairs,
        batch_size=config.batch_size,
        hard_negatives=config.hard_negatives,
        mixing_exponent=config.mixing_exponent,
        seed=config.seed,
        leftovers=config.leftovers,
    )
    rows = _count_rows(sampler.rows)
    steps = config.total_steps(sampler.steps_per_epoch)
    maker = _Maker(sampler, copy.deepcopy(tokenizer), config, any(row["rows"] - row["bare"] for row in rows.values()))
    planned = range(min(steps, _PLANNED_STEPS))
    texts = _TextStatistics()
    lengths = [texts.add(maker.tokenize(sampler.groups_at(step))) for step in planned]
    plan = make_plan(lengths, config, row_multiple)
    purities: list[tuple[str, float]] = []

    def draw() -> Iterable[Sequence[Group]]:
        for step in range(steps):
            groups = sampler.groups_at(step)
            purities.append((sampler.rows_at(step)[0], purity(groups)))
            yield groups

    order = data_order_hash(draw())
    stats = {
        "steps": steps,
        "steps_per_epoch": sampler.steps_per_epoch,
        "pairs": sum(row["rows"] for row in rows.values()),
        "datasets": {name: row["rows"] for name, row in rows.items()},
        "dataset_shares": dict(zip(sampler.names, map(float, sampler.shares), strict=True)),
        "pairs_without_negatives": sum(row["bare"] for row in rows.values()),
        "duplicate_pairs": sum(row["duplicates"] for row in rows.values()),
        "share_truncated": texts.share_truncated(),
        "tokens": texts.lengths(),
        "token_statistics_steps": len(planned),
        "layout": "bucketed" if plan.bucketed else "packed",
        "row_length": max(plan.rows),
        "rows_per_batch": sum(plan.rows.values()),
        "padding_share": 1.0 - sum(map(sum, lengths)) / (len(planned) * plan.slots),
        "purity": float(np.mean([value for name, value in purities if name != MIXED] or [0.0])),
        "mixed_batches": sum(name == MIXED for name, _ in purities),
        "data_order_hash": order,
    }
    return lambda step: maker.batch(step, plan), stats


class _Maker:
    """Makes batches; `negatives` places a query, 0 where no pair of the run has any."""

    def __init__(self, sampler: PairSampler, tokenizer: Any, config: ConversionConfig, any_negatives: bool):
        self._sampler, self._tokenizer, self._config = sampler, tokenizer, config
        self._negatives = config.hard_negatives if any_negatives else 0

    def batch(self, step: int, plan: Plan) -> ContrastiveBatch:
        groups = self._sampler.groups_at(step)
        tokens = self.tokenize(groups)
        keys = list(tokens)
        blocks, slot_N = lay_out([tokens[key][0] for key in keys], [tokens[key][1] for key in keys], plan, self._config)
        slot_of = dict(zip(keys, slot_N.tolist(), strict=True))
        K = 1 + self._negatives
        # A pair without hard negatives fills its places with its positive, masked below, to keep the shapes static.
        passages = [text for group in groups for text in _padded(group, K)]
        positive_Q = np.arange(len(groups), dtype=np.int32) * K
        mask_QP = np.ones((len(groups), len(passages)), bool)
        if self._config.mask_false_negatives:
            _mask_known_positives(mask_QP, groups, passages, positive_Q)
        for row, group in enumerate(groups):
            if not group.negatives:
                mask_QP[:, row * K + 1 : (row + 1) * K] = False
        return ContrastiveBatch(
            blocks=blocks,
            query_slot_Q=np.array([slot_of[self._query_key(group)] for group in groups], np.int32),
            passage_slot_P=np.array([slot_of[None, text] for text in passages], np.int32),
            positive_Q=positive_Q,
            mask_QP=mask_QP,
            teacher_QK=self._teacher(groups, K),
            tokens=np.float32(sum(len(ids) for ids, _, _ in tokens.values())),
            purity=np.float32(purity(groups)),
        )

    def tokenize(self, groups: Sequence[Group]) -> dict[Key, tuple[np.ndarray, int, bool]]:
        """(ids, first pooled token, truncated) of the distinct texts of a batch in order of first use."""
        keys: dict[Key, None] = {}
        for group in groups:
            keys[self._query_key(group)] = None
            for text in (group.positive, *group.negatives):
                keys[None, text] = None
        config = self._config
        found: dict[Key, tuple[np.ndarray, int, bool]] = {}
        for role, length in (("query", config.max_query_length), ("passage", config.max_passage_length)):
            mine = [key for key in keys if (key[0] is None) == (role == "passage")]
            prompts = [prompt or "" for prompt, _ in mine]
            tokens = tokenize_texts(self._tokenizer, [text for _, text in mine], prompt=prompts, max_length=length)
            _refuse_empty(tokens, mine, role)
            parts = zip(tokens.ids, tokens.pool_start.tolist(), tokens.truncated.tolist(), strict=True)
            found.update(zip(mine, parts, strict=True))
        return {key: found[key] for key in keys}

    def _query_key(self, group: Group) -> Key:
        return query_prompt(group.instruction, self._config.template), group.query

    def _teacher(self, groups: Sequence[Group], K: int) -> np.ndarray | None:
        if not self._config.distillation_weight:
            return None
        scores_QK = np.full((len(groups), K), np.nan, np.float32)
        for row, group in enumerate(groups):
            if len(group.scores) == K:
                scores_QK[row] = group.scores
        return scores_QK


def _padded(group: Group, K: int) -> list[str]:
    return [group.positive, *(group.negatives or (group.positive,) * (K - 1))]


def _refuse_empty(tokens: TokenizedTexts, keys: Sequence[Key], role: str) -> None:
    if tokens.empty.any():
        raise InputError(
            f"The training {role} {keys[int(tokens.empty.argmax())][1]!r} has no tokens; drop the row or fill the "
            "text in."
        )


def _mask_known_positives(
    mask_QP: np.ndarray, groups: Sequence[Group], passages: Sequence[str], positive_Q: np.ndarray
) -> None:
    """Sets False where a passage is known to answer the query: one of its positives, or of an equal query's.

    Texts are equal when their words are (data/leaks.normalised_hash), passages also when their ids are.
    """
    columns: dict[str, list[int]] = {}
    for column, text in enumerate(passages):
        columns.setdefault(normalised_hash(text), []).append(column)
    K = len(passages) // len(groups)
    for row, group in enumerate(groups):
        for place, passage_id in enumerate(group.ids[:K]):
            if passage_id:
                columns.setdefault(f"id {passage_id}", []).append(row * K + place)
    answers: dict[str, set[str]] = {}
    for group in groups:
        known = answers.setdefault(normalised_hash(group.query), set())
        known.update(map(normalised_hash, group.all_positives))
        known.update(f"id {passage_id}" for passage_id in group.all_positive_ids if passage_id)
    for row, group in enumerate(groups):
        for key in answers[normalised_hash(group.query)]:
            mask_QP[row, columns.get(key, [])] = False
        mask_QP[row, positive_Q[row]] = True


def _count_rows(rows: Mapping[str, Sequence[Pair]]) -> dict[str, dict[str, int]]:
    """Data set -> its rows, those without negatives (bare), and those that repeat an earlier row of any data set."""
    found: dict[str, dict[str, int]] = {}
    seen: set[bytes] = set()
    for name, pairs in rows.items():
        bare = duplicates = 0
        for pair in pairs:
            digest = hashlib.blake2b("\0".join((pair.query, *pair.positives)).encode(), digest_size=8).digest()
            bare += not pair.negatives
            duplicates += digest in seen
            seen.add(digest)
        found[name] = {"rows": len(pairs), "bare": bare, "duplicates": duplicates}
    return found


class _TextStatistics:
    """Lengths and truncation of the distinct texts of the steps that were looked at."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[Key, tuple[int, bool]]] = {"query": {}, "passage": {}}

    def add(self, tokens: Mapping[Key, tuple[np.ndarray, int, bool]]) -> list[int]:
        """Takes one batch in; returns the lengths of its texts."""
        for key, (ids, _, truncated) in tokens.items():
            self._texts["passage" if key[0] is None else "query"][key] = (len(ids), truncated)
        return [len(ids) for ids, _, _ in tokens.values()]

    def share_truncated(self) -> dict[str, float]:
        return {role: float(np.mean([cut for _, cut in texts.values()])) for role, texts in self._texts.items()}

    def lengths(self) -> dict[str, dict[str, float]]:
        found = {role: np.array([length for length, _ in texts.values()]) for role, texts in self._texts.items()}
        return {
            role: {"mean": float(x.mean()), "p95": float(np.percentile(x, 95)), "max": int(x.max())}
            for role, x in found.items()
        }
