"""The key-value cache of B rows, and one decoding step through it.

The cache is a ring of S slots per row and layer, (B, K, S, H): every row writes the slot `now`, whatever its length,
so that a step writes one contiguous window per layer; what a row may see is decided by age, `now - slot` modulo S.
Rotary positions are in the keys already, so a text may begin at any slot, and a finished row's place is taken by
another prompt at any time.

Decoding reads each weight once for B tokens, so its time is memory traffic: the stacked blocks are taken apart and
cast once per call of the sampler (`prepare`), not sliced layer by layer at every step.

U prompts, R rows that change hands, T prompt tokens, S slots, otherwise the letters of decoder.py.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hrsa_jax.models.attention import attend
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.lora import stacked_linears
from hrsa_jax.models.rope import rope_tables
from hrsa_jax.runtime.mesh import named_sharding, shard_batch

if TYPE_CHECKING:
    from hrsa_jax.models.decoder import Block, Decoder, Linear, RMSNorm

_HIDDEN = -1e30


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["blocks", "norm", "embed_VD", "table_VD", "head"],
    meta_fields=["config"],
)
@dataclass(frozen=True)
class Prepared:
    """A decoder made ready for decoding: its blocks apart, matrices in the operands' dtype.

    embed_VD as stored; table_VD the tied head in the operands' dtype, None where `head` is a layer of its own.
    """

    config: ModelConfig
    blocks: "list[Block]"
    norm: "RMSNorm"
    embed_VD: jax.Array
    table_VD: jax.Array | None
    head: "Linear | None"

    def logits(self, h_BD: jax.Array, dtype: Any) -> jax.Array:
        """Final states (B, D) -> float32 (B, V)."""
        if self.head is not None:
            return self.head(h_BD, dtype)
        return jnp.einsum("bd,vd->bv", h_BD.astype(dtype), self.table_VD, preferred_element_type=jnp.float32)


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "now", "length_B"], meta_fields=[])
@dataclass(frozen=True)
class Cache:
    """layers: (keys, values) of each, (B, K, S, H). now: int32 (), steps so far. length_B: tokens each row holds."""

    layers: list[tuple[jax.Array, jax.Array]]
    now: jax.Array
    length_B: jax.Array


@partial(jax.jit, static_argnames="dtype")
def prepare(decoder: "Decoder", dtype: Any) -> Prepared:
    """Takes the blocks apart and casts their matrices (adapters too); norms and the embedding stay as stored."""
    decoder = nnx.clone(decoder)
    for linear in [*stacked_linears(decoder).values(), decoder.head]:
        if linear is None:
            continue
        linear.kernel[...] = linear.kernel[...].astype(dtype)
        if linear.lora is not None:
            linear.lora.a[...], linear.lora.b[...] = linear.lora.a[...].astype(dtype), linear.lora.b[...].astype(dtype)
    blocks = [
        jax.tree.map(lambda leaf, at=layer: leaf[at], decoder.blocks) for layer in range(decoder.config.num_layers)
    ]
    embed_VD = decoder.embed[...]
    table_VD = embed_VD.astype(dtype) if decoder.head is None else None
    return Prepared(decoder.config, blocks, decoder.norm, embed_VD, table_VD, decoder.head)


def _mesh(decoder: "Decoder") -> jax.sharding.Mesh | None:
    """The mesh that the weights live on, if they do."""
    sharding = decoder.embed[...].sharding
    if isinstance(sharding, jax.sharding.NamedSharding) and isinstance(sharding.mesh, jax.sharding.Mesh):
        return sharding.mesh
    return None


def place(decoder: "Decoder", arrays: tuple[np.ndarray, ...]) -> tuple[jax.Array, ...]:
    """Puts arrays of one entry per row beside the weights: split over the rows on a mesh."""
    mesh = _mesh(decoder)
    return tuple(map(jnp.asarray, arrays)) if mesh is None else shard_batch(mesh, arrays)


def empty_cache(decoder: "Decoder", rows: int, slots: int, dtype: Any) -> Cache:
    """A cache of `rows` empty rows, placed as `place` has it."""
    config, mesh = decoder.config, _mesh(decoder)
    if jax.default_backend() == "cpu":  # which would widen all of a bfloat16 cache again at every step
        dtype = jnp.float32
    shape = (rows, config.num_kv_heads, slots, config.head_dim)
    device = None if mesh is None else named_sharding(mesh, ("batch", "kv_heads", None, None), shape)
    layers = [
        (jnp.zeros(shape, dtype, device=device), jnp.zeros(shape, dtype, device=device))
        for _ in range(config.num_layers)
    ]
    (length_B,) = place(decoder, (np.zeros(rows, np.int32),))
    return Cache(layers, jnp.zeros((), jnp.int32), length_B)


def prefill(
    decoder: "Decoder", tokens_UT: jax.Array, length_U: jax.Array, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs prompts padded on the right: final state of each last token (U, D), keys and values (L, U, T, K, H)."""
    config = decoder.config
    U, T = tokens_UT.shape
    segment_ids_UT = (jnp.arange(T) < length_U[:, None]).astype(jnp.int32)
    positions_UT = jnp.broadcast_to(jnp.arange(T), (U, T))
    rope = rope_tables(config.rope, config.head_dim, positions_UT, segment_ids_UT)
    # a window that differs between layers travels through the scan
    windows = set(config.windows)
    shared = next(iter(windows)) if len(windows) == 1 else None
    window_L = None if len(windows) == 1 else jnp.asarray([2**30 if w is None else w for w in config.windows])

    def step(x_UTD: jax.Array, layer: "tuple[Block, jax.Array | None]") -> tuple[jax.Array, Any]:
        block, window = layer
        mix = partial(
            attend,
            segment_ids_BT=segment_ids_UT,
            attention="causal",
            window=shared if window is None else window,
        )
        return block(x_UTD, rope, mix, dtype)

    embedded_UTD = decoder.embed[...][tokens_UT].astype(jnp.float32)
    x_UTD, (k_LUTKH, v_LUTKH) = jax.lax.scan(step, embedded_UTD, (decoder.blocks, window_L))
    last_UD = jnp.take_along_axis(x_UTD, (length_U - 1)[:, None, None], axis=1)[:, 0]
    return decoder.norm(last_UD), k_LUTKH, v_LUTKH


def insert(
    cache: Cache,
    prompts: tuple[jax.Array, jax.Array],
    length_R: jax.Array,
    source_R: jax.Array,
    row_R: jax.Array,
) -> Cache:
    """Puts prompt source_R[r] of `prompts` (keys and values, (L, U, T, K, H)) into row row_R[r], ending at `now`.

    Rows numbered B or more are left out.
    """
    S = cache.layers[0][0].shape[2]
    # slot s holds the token that is (now - 1 - s) mod S tokens before the prompt's last
    place_RS = length_R[:, None] - 1 - (cache.now - 1 - jnp.arange(S)) % S
    place_RS = jnp.clip(place_RS, 0, prompts[0].shape[2] - 1)  # what is clipped is hidden by its age

    def moved(old_BKSH: jax.Array, new_UTKH: jax.Array) -> jax.Array:
        new_RKSH = new_UTKH[source_R[:, None], place_RS].swapaxes(1, 2)
        return old_BKSH.at[row_R].set(new_RKSH.astype(old_BKSH.dtype), mode="drop")

    k_LUTKH, v_LUTKH = prompts
    layers = [(moved(k, k_LUTKH[layer]), moved(v, v_LUTKH[layer])) for layer, (k, v) in enumerate(cache.layers)]
    return replace(cache, layers=layers, length_B=cache.length_B.at[row_R].set(length_R, mode="drop"))


def decode_step(
    prepared: Prepared, token_B: jax.Array, cache: Cache, active_B: jax.Array, dtype: Any
) -> tuple[jax.Array, Cache]:
    """Runs one more token per row -> (its final state (B, D), the cache that holds it).

    Rows that are not active compute numbers nobody reads, and grow no longer.
    """
    config = prepared.config
    S = cache.layers[0][0].shape[2]
    slot = cache.now % S
    age_1S = ((cache.now - jnp.arange(S)) % S)[None]
    held_BS = age_1S <= cache.length_B[:, None]
    rope = rope_tables(config.rope, config.head_dim, cache.length_B[:, None], jnp.ones_like(token_B)[:, None])
    x_B1D = prepared.embed_VD[token_B].astype(jnp.float32)[:, None]
    layers = []
    for block, (old_k, old_v), window in zip(prepared.blocks, cache.layers, config.windows, strict=True):
        seen_BS = held_BS if window is None else held_BS & (age_1S < window)

        def mix(
            q: jax.Array, k: jax.Array, v: jax.Array, old=(old_k, old_v), seen_BS: jax.Array = seen_BS
        ) -> jax.Array:
            k_BKSH, v_BKSH = (
                jax.lax.dynamic_update_slice_in_dim(held, fresh.swapaxes(1, 2).astype(held.dtype), slot, axis=2)
                for held, fresh in zip(old, (k, v), strict=True)
            )
            layers.append((k_BKSH, v_BKSH))
            return _attend_one(q, k_BKSH, v_BKSH, seen_BS)

        x_B1D, _ = block(x_B1D, rope, mix, dtype)
    length_B = jnp.where(active_B, cache.length_B + 1, cache.length_B)
    return prepared.norm(x_B1D[:, 0]), Cache(layers, cache.now + 1, length_B)


def _attend_one(q_B1NH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, seen_BS: jax.Array) -> jax.Array:
    """Attention of one scaled query per row -> float32 (B, 1, N, H)."""
    B, K, _, H = k_BKSH.shape
    q_BKGH = q_B1NH.reshape(B, K, -1, H)
    scores = jnp.einsum("bkgh,bksh->bkgs", q_BKGH, k_BKSH, preferred_element_type=jnp.float32)
    scores = jnp.where(seen_BS[:, None, None], scores, _HIDDEN)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total_BKG1 = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum("bkgs,bksh->bkgh", weights.astype(v_BKSH.dtype), v_BKSH, preferred_element_type=jnp.float32)
    return (mixed / total_BKG1).reshape(B, 1, -1, H)
