"""Shapes of batches: one plan for a run, larger shapes only where a batch does not fit, every text in its place."""

import dataclasses

import numpy as np
import pytest

from hrsa_jax.embedding.layout import lay_out, make_plan
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.runtime.errors import InputError

CONFIG = ConversionConfig(steps=1, max_segments=4, max_query_length=128, max_passage_length=128)
BUCKETED = dataclasses.replace(CONFIG, layout="bucketed")


def texts(random, count, longest=100):
    return [np.full(length, i + 1, np.int32) for i, length in enumerate(random.integers(3, longest, count))]


def read_back(blocks, slots, segments):
    """The tokens and pooled tokens of each text, found through its slot."""
    places = [
        (rows, row, segment) for rows in blocks for row in range(len(rows.tokens_RT)) for segment in range(segments)
    ]
    found = []
    for slot in slots:
        rows, row, segment = places[slot]
        here = rows.segment_ids_RT[row] == segment + 1
        found.append((rows.tokens_RT[row][here], rows.pool_mask_RT[row][here], rows.positions_RT[row][here]))
    return found


@pytest.mark.parametrize("config", [CONFIG, BUCKETED, dataclasses.replace(CONFIG, chunk_tokens=512)])
def test_every_text_stands_where_its_slot_says(config):
    random = np.random.default_rng(0)
    batches = [texts(random, 24) for _ in range(5)]
    plan = make_plan([[len(text) for text in batch] for batch in batches], config, 2)
    for batch in [*batches, texts(random, 40, 128), texts(random, 3)]:
        starts = [len(text) // 2 for text in batch]
        blocks, slots = lay_out(batch, starts, plan, config)
        assert len(set(slots.tolist())) == len(batch)
        for text, start, (tokens, mask, positions) in zip(
            batch, starts, read_back(blocks, slots, config.segments), strict=True
        ):
            np.testing.assert_array_equal(tokens, text)
            np.testing.assert_array_equal(np.nonzero(mask)[0], np.arange(start, len(text)))
            np.testing.assert_array_equal(positions, np.arange(len(text)))
        for rows in blocks:
            count, length = rows.tokens_RT.shape
            assert count % (2 * config.chunk_count(count, length)) == 0
            if config.chunk_tokens:
                assert count // config.chunk_count(count, length) * length <= max(config.chunk_tokens, 2 * length)


@pytest.mark.parametrize("config", [CONFIG, BUCKETED])
def test_few_shapes_over_a_long_run(config):
    random = np.random.default_rng(1)
    plan = make_plan([[len(text) for text in texts(random, 32)] for _ in range(64)], config, 1)
    shapes = set()
    for _ in range(400):
        batch = texts(random, 32)
        blocks, _ = lay_out(batch, [0] * 32, plan, config)
        shapes.add(tuple(rows.tokens_RT.shape for rows in blocks))
    assert len(shapes) <= (2 if config is CONFIG else 8)


def test_buckets_waste_little_and_rows_without_a_text_hold_one_token():
    random = np.random.default_rng(2)
    batches = [texts(random, 64) for _ in range(20)]
    plan = make_plan([[len(text) for text in batch] for batch in batches], BUCKETED, 1)
    used = np.mean([sum(map(len, batch)) for batch in batches])
    assert used / plan.slots > 0.65
    blocks, _ = lay_out(batches[0], [0] * 64, plan, BUCKETED)
    for rows in blocks:
        assert (rows.segment_ids_RT.sum(1) >= 1).all()


def test_recipes_that_contradict_themselves_are_refused():
    for change, message in (
        ({"epochs": 1.0}, "steps=1 and epochs=1.0"),
        ({"steps": None}, "steps=None and epochs=None"),
        ({"steps": 0}, "steps=0"),
        ({"chunks": 2, "chunk_tokens": 64}, "chunks=2 and chunk_tokens=64"),
        ({"temperature": 0.0}, "temperature that is not positive"),
        ({"template": "Query: "}, "does not hold"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(CONFIG, **change)
    assert dataclasses.replace(CONFIG, steps=None, epochs=1.5).total_steps(10) == 15
