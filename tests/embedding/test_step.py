"""The contrastive step: its loss and gradients against torch, and equal for any packing, chunking and mesh."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrsa_jax.data.packing import PackedRows
from hrsa_jax.data.prompts import query_prompt
from hrsa_jax.embedding.batches import ContrastiveBatch, conversion_batches
from hrsa_jax.embedding.recipe import ConversionConfig
from hrsa_jax.embedding.step import batch_loss, contrastive_loss_fn
from hrsa_jax.models.lora import LoRAConfig, add_lora, split_trainable
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.loop import OptimConfig, init_state, make_optimizer, make_step
from hrsa_jax.runtime.mesh import make_mesh, shard_batch

CONFIG = ConversionConfig(
    steps=2, batch_size=4, hard_negatives=2, row_length=64, max_segments=8, dtype="float32", remat=False
)


def loss_and_gradients(decoder, config, batch, *, lora=False):
    graphdef, trainable, frozen = split_trainable(decoder, lora=lora)
    compute = jax.jit(jax.value_and_grad(contrastive_loss_fn(graphdef, config), has_aux=True))
    (loss, metrics), grads = compute(trainable, frozen, batch)
    return float(loss), metrics, {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(grads)}


def assert_same(one, other, rtol=1e-5):
    assert one[0] == pytest.approx(other[0], rel=rtol)
    assert one[2].keys() == other[2].keys()
    for name, gradient in one[2].items():
        scale = float(jnp.abs(gradient).max())
        assert scale > 0 or "lora" in name, name
        np.testing.assert_allclose(other[2][name], gradient, atol=rtol * scale + 1e-12, rtol=0, err_msg=name)


@pytest.fixture(scope="module")
def reference(backbone, build_pairs):
    batch_at, _ = conversion_batches(build_pairs(), backbone.tokenizer, CONFIG, row_multiple=8)
    batch = batch_at(0)
    return batch, loss_and_gradients(backbone.decoder, CONFIG, batch)


def unpacked(batch, max_segments):
    """The same texts, one a row (padded instead of packed)."""
    tokens, segments, positions, mask = (np.asarray(x) for x in batch.blocks[0])
    texts = [(r, s) for r in range(len(tokens)) for s in range(1, segments[r].max() + 1)]
    shape = (len(texts), tokens.shape[1])
    rows = PackedRows(*(np.zeros(shape, x.dtype) for x in batch.blocks[0]))
    place = {}
    for number, (row, segment) in enumerate(texts):
        here = segments[row] == segment
        n = here.sum()
        for new, old in zip(rows, (tokens, np.ones_like(tokens), positions, mask), strict=True):
            new[number, :n] = old[row][here]
        place[row * max_segments + segment - 1] = number * max_segments
    move = np.vectorize(place.get)
    return batch._replace(
        blocks=(rows,), query_slot_Q=move(batch.query_slot_Q), passage_slot_P=move(batch.passage_slot_P)
    )


def test_loss_and_every_gradient_equal_torch(backbone, build_pairs, reference, tmp_path):
    """Plain formula in torch: each text alone, mean over its own tokens, all passages of the batch."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    batch, (loss, _, grads) = reference
    backbone.with_decoder(backbone.decoder, "reference").export(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"is_causal": False}))
    model = transformers.AutoModel.from_pretrained(str(tmp_path), dtype=torch.float64)
    tokens, segments, _, mask = (np.asarray(x) for x in batch.blocks[0])

    def vector(slot):
        row, segment = slot // CONFIG.max_segments, slot % CONFIG.max_segments + 1
        here = segments[row] == segment
        states = model(input_ids=torch.tensor(tokens[row][here][None].astype(np.int64))).last_hidden_state[0]
        return torch.nn.functional.normalize(states[torch.tensor(mask[row][here])].mean(0), dim=0)

    queries = torch.stack([vector(slot) for slot in batch.query_slot_Q])
    passages = torch.stack([vector(slot) for slot in batch.passage_slot_P])
    logits = (queries @ passages.T / CONFIG.temperature).masked_fill(~torch.tensor(batch.mask_QP), float("-inf"))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(batch.positive_Q, dtype=torch.int64))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    compared = 0
    for key, gradient in grads.items():
        for layer, name in peer_names(key):
            mine = np.asarray(gradient if layer is None else gradient[layer])
            other = theirs[name].T if "proj" in name else theirs[name]
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max(), err_msg=name)
            compared += 1
    assert compared == len(theirs) == 2 * 9 + 2


def peer_names(key):
    """(layer, transformers' name) of the parameters that one of our gradient leaves holds."""
    places = {"input_norm": "input_layernorm", "post_norm": "post_attention_layernorm"}
    places |= {f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"}
    places |= {f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    found = next((place for ours, place in places.items() if ours in key), None)
    if found is not None:
        return [(layer, f"layers.{layer}.{found}.weight") for layer in range(2)]
    return [(None, "embed_tokens.weight" if "embed" in key else "norm.weight")]


def test_packed_equals_padded(backbone, reference):
    batch, expected = reference
    assert_same(expected, loss_and_gradients(backbone.decoder, CONFIG, unpacked(batch, CONFIG.max_segments)))


@pytest.mark.parametrize("chunking", [{"chunks": 2}, {"chunks": 4, "remat": True}, {"chunks": 8}])
def test_any_number_of_chunks_gives_the_same(backbone, reference, chunking):
    """Gradients of one global batch, accumulated over its parts, equal those of the batch in one piece."""
    config = dataclasses.replace(CONFIG, **chunking)
    assert_same(reference[1], loss_and_gradients(backbone.decoder, config, reference[0]))


def test_buckets_equal_packed_rows(backbone, build_pairs, reference):
    config = dataclasses.replace(CONFIG, layout="bucketed", chunk_tokens=256)
    batch_at, stats = conversion_batches(build_pairs(), backbone.tokenizer, config)
    batch = batch_at(0)
    assert stats["layout"] == "bucketed"
    assert len(batch.blocks) >= 1
    assert all(rows.segment_ids_RT.max() == 1 for rows in batch.blocks)
    assert batch.tokens == reference[0].tokens
    assert_same(reference[1], loss_and_gradients(backbone.decoder, config, batch))


def test_averaged_gradients_of_two_batches_give_the_update_of_their_mean_loss(backbone, build_pairs):
    """accumulate=2 on two batches = one update on the mean of their losses, to 1e-5 of the largest change."""
    batch_at, _ = conversion_batches(build_pairs(), backbone.tokenizer, CONFIG)
    batches = [batch_at(0), batch_at(1)]
    graphdef, trainable, frozen = split_trainable(backbone.decoder, lora=False)
    loss_fn = contrastive_loss_fn(graphdef, CONFIG)

    def mean_loss(trainable, frozen, both):
        losses = [loss_fn(trainable, frozen, batch)[0] for batch in both]
        return sum(losses) / 2, {}

    # plain descent in place of AdamW's signs: its update is the gradient itself
    rule = OptimConfig(1e6, b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0, schedule="constant", clip_norm=1e9)
    results = []
    for config, fn, inputs in (
        (dataclasses.replace(rule, accumulate=2), loss_fn, batches),
        (rule, mean_loss, [batches]),
    ):
        optimizer = make_optimizer(config, 4)
        state, step = init_state(trainable, frozen, optimizer), make_step(fn, optimizer)
        for one in inputs:
            state, _ = step(state, jax.tree.map(jnp.asarray, one))
        results.append(state.trainable)
    for before, one, other in zip(*map(jax.tree.leaves, (trainable, *results)), strict=True):
        change = np.abs(np.asarray(other - before, np.float64)).max()
        assert change > 0
        np.testing.assert_allclose(one - before, other - before, rtol=0, atol=1e-5 * change + 1e-7)


@pytest.mark.slow
def test_every_option_of_the_loss_is_the_same_in_chunks(backbone, build_pairs):
    pairs = [
        dataclasses.replace(pair, positive_scores=(0.9, 0.8), negative_scores=(0.3, 0.1)) for pair in build_pairs()
    ]
    options = {"symmetric": True, "matryoshka": (8, 32), "false_negative_margin": 0.1, "distillation_weight": 0.5}
    config = dataclasses.replace(CONFIG, **options)
    batch = conversion_batches(pairs, backbone.tokenizer, config, row_multiple=4)[0](0)
    whole = loss_and_gradients(backbone.decoder, config, batch)
    assert set(whole[1]) >= {"distillation", "gap"}
    assert_same(whole, loss_and_gradients(backbone.decoder, dataclasses.replace(config, chunks=4), batch))


@pytest.mark.parametrize(
    "change",
    [{"symmetric": True}, {"matryoshka": (8,)}, {"false_negative_margin": 0.05}, {"distillation_weight": 0.5}],
)
def test_every_option_changes_the_loss(backbone, build_pairs, change):
    pairs = [
        dataclasses.replace(pair, positive_scores=(0.9, 0.8), negative_scores=(0.3, 0.1)) for pair in build_pairs()
    ]
    batch = conversion_batches(pairs, backbone.tokenizer, dataclasses.replace(CONFIG, **change))[0](0)
    random = np.random.default_rng(0)
    queries, passages = random.normal(size=(4, 16)), random.normal(size=(12, 16))
    both = jax.jit(
        lambda q, p: [
            batch_loss(q, p, one, config)[0]
            for one, config in (
                (batch._replace(teacher_QK=None), CONFIG),
                (batch, dataclasses.replace(CONFIG, **change)),
            )
        ]
    )
    plain, changed = map(float, both(queries, passages))
    assert changed != pytest.approx(plain, rel=1e-3)


def test_eight_devices_equal_one(build_backbone, build_pairs):
    backbone = build_backbone()
    config = dataclasses.replace(CONFIG, batch_size=8, chunks=2)
    batch_at, _ = conversion_batches(build_pairs(24), backbone.tokenizer, config, row_multiple=8)
    batch = batch_at(0)
    assert batch.blocks[0].tokens_RT.shape[0] % 16 == 0
    expected = loss_and_gradients(backbone.decoder, dataclasses.replace(config, chunks=1), batch)
    mesh = make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        replicated = jax.device_put(backbone.decoder, jax.NamedSharding(mesh, jax.P()))
        placed = shard_batch(mesh, batch)
        assert len(placed.blocks[0].tokens_RT.sharding.device_set) == 8
        got = loss_and_gradients(replicated, config, placed)
    assert_same(expected, got)


def test_lora_gradients_are_of_the_adapters_only(backbone, reference):
    adapted = add_lora(backbone.decoder, LoRAConfig(rank=2), seed=0)
    loss, metrics, grads = loss_and_gradients(adapted, CONFIG, reference[0], lora=True)
    assert loss == pytest.approx(reference[1][0], rel=1e-5)  # a fresh adapter changes nothing
    assert len(grads) == 14
    assert all("lora" in name for name in grads)
    assert set(metrics) == {"gap", "alignment", "uniformity", "tokens", "padding", "purity"}
    assert all(np.ndim(value) == 0 for value in jax.tree.leaves(metrics))


def test_bfloat16_computes_float32_gradients_close_to_float32(backbone, reference):
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    loss, _, grads = loss_and_gradients(backbone.decoder, config, reference[0])
    assert loss == pytest.approx(reference[1][0], rel=0.1)
    for name, gradient in grads.items():
        assert gradient.dtype == jnp.float32
        cosine = np.vdot(gradient, reference[1][2][name]) / (
            np.linalg.norm(gradient) * np.linalg.norm(reference[1][2][name])
        )
        assert cosine > 0.98, name


def test_batches_have_one_shape_and_hold_what_was_drawn(backbone, build_pairs):
    pairs = build_pairs(9, dataset="a") + build_pairs(14, dataset="b")
    config = dataclasses.replace(CONFIG, steps=7)
    batch_at, stats = conversion_batches(pairs, backbone.tokenizer, config, row_multiple=2)
    batches = [batch_at(step) for step in range(7)]
    assert len({tuple(leaf.shape for leaf in jax.tree.leaves(batch)) for batch in batches}) == 1
    jax.tree.map(np.testing.assert_array_equal, batch_at(3), batches[3])
    assert stats["purity"] == 1.0
    assert stats["datasets"] == {"a": 9, "b": 14}
    assert stats["rows_per_batch"] % 2 == 0
    assert 0 <= stats["padding_share"] < 1
    again = conversion_batches(pairs, backbone.tokenizer, config)[1]["data_order_hash"]
    assert stats["data_order_hash"] == again
    other = conversion_batches(pairs, backbone.tokenizer, dataclasses.replace(config, seed=1))[1]
    assert other["data_order_hash"] != again


def decoded_slots(batch, tokenizer, slots, max_segments):
    texts = []
    for slot in slots:
        row, segment = divmod(int(slot), max_segments)
        here = batch.blocks[0].segment_ids_RT[row] == segment + 1
        texts.append(tokenizer.decode(batch.blocks[0].tokens_RT[row][here].tolist()))
    return texts


def test_slots_lead_to_the_right_texts(backbone, build_pairs):
    pairs = build_pairs()
    batch_at, _ = conversion_batches(pairs, backbone.tokenizer, CONFIG)
    batch = batch_at(1)
    queries = decoded_slots(batch, backbone.tokenizer, batch.query_slot_Q, CONFIG.max_segments)
    passages = decoded_slots(batch, backbone.tokenizer, batch.passage_slot_P, CONFIG.max_segments)
    by_query = {query_prompt(pair.instruction) + pair.query: pair for pair in pairs}
    for number, query in enumerate(queries):
        pair = by_query[query]
        group = passages[number * 3 : number * 3 + 3]
        assert group[0] in pair.positives
        assert set(group[1:]) <= set(pair.negatives)
        assert batch.positive_Q[number] == number * 3


def test_known_positives_and_missing_negatives_are_masked(backbone, build_pairs):
    pairs = build_pairs(4)
    pairs[1] = dataclasses.replace(pairs[1], negatives=())
    pairs[2] = dataclasses.replace(pairs[2], positives=pairs[2].positives[:1], negatives=pairs[3].positives)
    pairs[3] = dataclasses.replace(pairs[3], query=pairs[2].query, positives=pairs[3].positives[:1])
    config = dataclasses.replace(CONFIG, steps=1)
    batch = conversion_batches(pairs, backbone.tokenizer, config)[0](0)
    queries = decoded_slots(batch, backbone.tokenizer, batch.query_slot_Q, config.max_segments)
    passages = decoded_slots(batch, backbone.tokenizer, batch.passage_slot_P, config.max_segments)
    bare = next(i for i, query in enumerate(queries) if query.endswith(pairs[1].query))
    assert not batch.mask_QP[:, bare * 3 + 1 : bare * 3 + 3].any()
    for row, query in enumerate(queries):
        known = {p for pair in pairs if query.endswith(pair.query) for p in pair.positives}
        for column, passage in enumerate(passages):
            masked = passage in known and column != row * 3
            assert batch.mask_QP[row, column] == (not masked and column - bare * 3 not in (1, 2))
    plain = conversion_batches(pairs, backbone.tokenizer, dataclasses.replace(config, mask_false_negatives=False))[0](0)
    assert plain.mask_QP.sum() == 4 * 10


def test_known_answers_are_masked_by_id_and_by_words_alike(backbone, build_pairs):
    pairs = build_pairs(4, negatives=1)
    pairs = [
        dataclasses.replace(pair, positives=pair.positives[:1], positive_ids=(f"doc{i}",), negative_ids=(f"neg{i}",))
        for i, pair in enumerate(pairs)
    ]
    pairs[0] = dataclasses.replace(pairs[0], negative_ids=("doc1",))  # the second query's answer in other words
    pairs[2] = dataclasses.replace(pairs[2], negatives=(pairs[3].positives[0].upper() + " !",))
    batch = conversion_batches(pairs, backbone.tokenizer, dataclasses.replace(CONFIG, steps=1))[0](0)
    queries = decoded_slots(batch, backbone.tokenizer, batch.query_slot_Q, CONFIG.segments)
    row_of = [next(i for i, query in enumerate(queries) if query.endswith(pair.query)) for pair in pairs]
    K = batch.mask_QP.shape[1] // 4
    hidden = {(row_of[1], row_of[0] * K + 1), (row_of[3], row_of[2] * K + 1)}
    places = {(int(i), int(j)) for i, j in zip(*np.nonzero(~batch.mask_QP), strict=True) if j % K <= 1}
    assert hidden <= places


def test_batches_do_not_depend_on_what_was_asked_before_and_no_ids_are_kept(backbone, build_pairs):
    config = dataclasses.replace(CONFIG, steps=200)
    batch_at, stats = conversion_batches(build_pairs(), backbone.tokenizer, config)
    assert stats["token_statistics_steps"] == 64
    first = batch_at(150)
    other, _ = conversion_batches(build_pairs(), backbone.tokenizer, config)
    other(7)
    jax.tree.map(np.testing.assert_array_equal, first, other(150))
    maker = batch_at.__closure__[0].cell_contents
    assert not any(isinstance(value, dict | list) and len(value) > 16 for value in vars(maker).values())


def test_epochs_and_leftovers(backbone, build_pairs):
    pairs = build_pairs(9, dataset="a") + build_pairs(7, dataset="b")
    config = dataclasses.replace(CONFIG, steps=None, epochs=2.0)
    assert conversion_batches(pairs, backbone.tokenizer, config)[1]["steps"] == 6
    batch_at, stats = conversion_batches(pairs, backbone.tokenizer, dataclasses.replace(config, leftovers="mix"))
    assert (stats["steps"], stats["mixed_batches"], stats["purity"]) == (8, 2, 1.0)
    purities = [float(batch_at(step).purity) for step in range(8)]
    assert sum(value < 1 for value in purities) == 2


def test_the_row_length_that_wastes_least_is_chosen(backbone, build_pairs):
    free = dataclasses.replace(CONFIG, row_length=None, steps=3)
    chosen = conversion_batches(build_pairs(), backbone.tokenizer, free)[1]
    for length in (64, 128, 256):
        fixed = dataclasses.replace(free, row_length=length)
        stats = conversion_batches(build_pairs(), backbone.tokenizer, fixed)[1]
        assert chosen["padding_share"] <= stats["padding_share"]
        assert chosen["data_order_hash"] == stats["data_order_hash"]


def test_pairs_without_any_negatives_need_no_places(backbone, build_pairs):
    batch = conversion_batches(build_pairs(negatives=0), backbone.tokenizer, CONFIG)[0](0)
    assert isinstance(batch, ContrastiveBatch)
    assert batch.passage_slot_P.shape == (4,)


def test_refusals(backbone, build_pairs):
    with pytest.raises(InputError, match="fewer than the batch of 40"):
        conversion_batches(build_pairs(), backbone.tokenizer, dataclasses.replace(CONFIG, batch_size=40))
    with pytest.raises(InputError, match="chunks=0"):
        dataclasses.replace(CONFIG, chunks=0)
    empty = [dataclasses.replace(pair, positives=("",)) for pair in build_pairs()]
    with pytest.raises(InputError, match="passage '' has no tokens"):
        conversion_batches(empty, backbone.tokenizer, CONFIG)
