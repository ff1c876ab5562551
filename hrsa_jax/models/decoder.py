"""The one decoder: pre-norm transformer blocks with grouped-query attention, RoPE and a gated MLP, in flax nnx.

Blocks are stacked: every block parameter has a leading axis L, and the forward pass is one `lax.scan` over it. The
residual stream, norms, softmax and all sums are float32; `dtype` is the type of the matmul operands.
Hidden states follow the Hugging Face convention: h_0 token embeddings, ..., h_L after the final norm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from hrsa_jax.models.attention import attend
from hrsa_jax.models.config import ModelConfig
from hrsa_jax.models.matmul import adapted_matmul, matmul
from hrsa_jax.models.rope import apply_rope, rope_tables
from hrsa_jax.runtime.errors import InputError
from hrsa_jax.runtime.mesh import constrain

if TYPE_CHECKING:
    from hrsa_jax.models.lora import LoRA

_NO_WINDOW = 2**30  # stands for None where windows differ between layers and travel through the scan


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderOutput:
    """last_BTD: float32 (B, T, D) after the final norm. collected: `collect`'s results stacked to L+1, or None."""

    last_BTD: jax.Array
    collected: Any


class Initializer:
    """Draws the parameters of a random model; a checkpoint's values replace them.

    Each array carries its logical axes and, for heads, the number of indivisible units (see runtime/mesh.py).
    """

    def __init__(self, seed: int, dtype: Any = jnp.float32):
        self.rngs = nnx.Rngs(seed)
        self.dtype = dtype

    def normal(
        self, shape: tuple[int, ...], axes: tuple[str | None, ...], units: tuple[int, ...] | None = None
    ) -> nnx.Param:
        value = 0.02 * jax.random.normal(self.rngs.params(), shape, self.dtype)
        return nnx.Param(value, logical_axes=axes, units=units or shape)

    def constant(
        self,
        value: float,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        units: tuple[int, ...] | None = None,
    ) -> nnx.Param:
        return nnx.Param(jnp.full(shape, value, self.dtype), logical_axes=axes, units=units or shape)


class Linear(nnx.Module):
    """y = x @ kernel (+ bias) (+ scale * (x @ A) @ B): kernel (in, out), or (L, in, out) when stacked."""

    def __init__(
        self,
        init: Initializer,
        layers: int | None,
        features: tuple[int, int],
        axes: tuple[str | None, str | None],
        *,
        units: tuple[int, int] | None = None,
        bias: bool = False,
    ):
        stack = () if layers is None else (layers,)
        lead = () if layers is None else (None,)
        units = units or features
        self.kernel = init.normal((*stack, *features), (*lead, *axes), (*stack, *units))
        self.bias = init.constant(0.0, (*stack, features[1]), (*lead, axes[1]), (*stack, units[1])) if bias else None
        self.lora: LoRA | None = nnx.data(None)

    def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
        """(..., in) -> float32 (..., out); operands are cast to `dtype`, sums are float32."""
        if self.lora is None:
            y = matmul(x, self.kernel[...], dtype)
        else:
            y = adapted_matmul(x, self.kernel[...], self.lora.a[...], self.lora.b[...], self.lora.scale, dtype)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in float32."""

    def __init__(self, init: Initializer, layers: int | None, size: int, eps: float):
        stack = () if layers is None else (layers,)
        self.scale = init.constant(1.0, (*stack, size), (None,) * (len(stack) + 1))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        normed = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        return normed * self.scale[...].astype(jnp.float32)


#: what one block's attention does with (q, k, v): returns the mixed values (B, T, N, H)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Block(nnx.Module):
    """One transformer block, or L of them stacked; the linear layers have the names checkpoints use."""

    def __init__(self, config: ModelConfig, init: Initializer, layers: int | None):
        D, F = config.hidden_size, config.intermediate_size
        N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
        self.num_heads, self.num_kv_heads, self.head_dim = N, K, H
        self.input_norm = RMSNorm(init, layers, D, config.rms_norm_eps)
        qkv = {"bias": config.qkv_bias}
        self.q_proj = Linear(init, layers, (D, N * H), ("embed", "heads"), units=(D, N), **qkv)
        self.k_proj = Linear(init, layers, (D, K * H), ("embed", "kv_heads"), units=(D, K), **qkv)
        self.v_proj = Linear(init, layers, (D, K * H), ("embed", "kv_heads"), units=(D, K), **qkv)
        self.o_proj = Linear(init, layers, (N * H, D), ("heads", "embed"), units=(N, D), bias=config.output_bias)
        self.q_norm = RMSNorm(init, layers, H, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(init, layers, H, config.rms_norm_eps) if config.qk_norm else None
        self.post_norm = RMSNorm(init, layers, D, config.rms_norm_eps)
        self.gate_proj = Linear(init, layers, (D, F), ("embed", "mlp"), bias=config.mlp_bias)
        self.up_proj = Linear(init, layers, (D, F), ("embed", "mlp"), bias=config.mlp_bias)
        self.down_proj = Linear(init, layers, (F, D), ("mlp", "embed"), bias=config.mlp_bias)

    def __call__(
        self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array], attend: Attend, dtype: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """float32 (B, T, D) -> (float32 (B, T, D), this block's keys and values (B, T, K, H) in `dtype`)."""
        B, T, _ = x_BTD.shape
        h = self.input_norm(x_BTD)
        q = self.q_proj(h, dtype).reshape(B, T, self.num_heads, self.head_dim)
        k = self.k_proj(h, dtype).reshape(B, T, self.num_kv_heads, self.head_dim)
        v = self.v_proj(h, dtype).reshape(B, T, self.num_kv_heads, self.head_dim).astype(dtype)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = (apply_rope(q, *rope) * self.head_dim**-0.5).astype(dtype)
        k = apply_rope(k, *rope).astype(dtype)
        mixed_BTNH = attend(q, k, v)
        x_BTD = x_BTD + self.o_proj(mixed_BTNH.reshape(B, T, -1), dtype)
        h = self.post_norm(x_BTD)
        x_BTD = x_BTD + self.down_proj(jax.nn.silu(self.gate_proj(h, dtype)) * self.up_proj(h, dtype), dtype)
        return constrain(x_BTD, ("batch", None, None)), (k, v)


class Decoder(nnx.Module):
    """A decoder-only language model of one of the four families.

    Args:
        config: the model's configuration.
        seed: for the random parameters (weights.py replaces them without ever drawing them).
        dtype: type of the parameters.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0, dtype: Any = jnp.float32):
        init = Initializer(seed, dtype)
        V, D = config.vocab_size, config.hidden_size
        self.config = config
        self.embed = init.normal((V, D), ("vocab", None))
        self.blocks = Block(config, init, config.num_layers)
        self.norm = RMSNorm(init, None, D, config.rms_norm_eps)
        untied = config.has_head and not config.tie_word_embeddings
        self.head = Linear(init, None, (D, V), (None, "vocab")) if untied else None

    def _windows(self) -> tuple[int | None, jax.Array | None]:
        """(the window all layers share, None) or, where layers differ, (None, int32 (L,) for the scan)."""
        windows = self.config.windows
        if len(set(windows)) == 1:
            return windows[0], None
        return None, jnp.asarray([_NO_WINDOW if w is None else w for w in windows], jnp.int32)

    def _embed(self, tokens_BT: jax.Array) -> jax.Array:
        return constrain(self.embed[...][tokens_BT].astype(jnp.float32), ("batch", None, None))

    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array,
        positions_BT: jax.Array,
        *,
        attention: str,
        collect: Callable[[jax.Array], Any] | None = None,
        dtype: Any = jnp.float32,
        implementation: str = "auto",
        remat: bool = False,
    ) -> DecoderOutput:
        """Runs whole rows.

        Args:
            tokens_BT, segment_ids_BT, positions_BT: int (B, T). Tokens see each other within a segment; segment 0 is
                padding (its states are finite and mean nothing); positions restart in every segment.
            attention: "causal" or "bidirectional".
            collect: called on every hidden state float32 (B, T, D) inside the layer scan; its results come back
                stacked to L+1, so that pooled states or statistics leave the device and full states need not.
            dtype: of the matmul operands; sums are always float32.
            implementation: of attention, see attention.py.
            remat: recompute each block in the backward pass instead of storing its activations.
        """
        config = self.config
        rope = rope_tables(config.rope, config.head_dim, positions_BT, segment_ids_BT)
        shared_window, window_L = self._windows()

        def step(x_BTD: jax.Array, layer: tuple[Block, jax.Array | None]) -> tuple[jax.Array, Any]:
            block, window = layer

            def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                return attend(
                    q,
                    k,
                    v,
                    segment_ids_BT,
                    attention=attention,
                    window=shared_window if window is None else window,
                    implementation=implementation,
                )

            return block(x_BTD, rope, mix, dtype)[0], None if collect is None else collect(x_BTD)

        x_BTD = self._embed(tokens_BT)
        x_BTD, collected = jax.lax.scan(jax.checkpoint(step) if remat else step, x_BTD, (self.blocks, window_L))
        last_BTD = self.norm(x_BTD)
        if collect is not None:
            collected = jax.tree.map(
                lambda layers, last: jnp.concatenate([layers, last[None]]), collected, collect(last_BTD)
            )
        return DecoderOutput(last_BTD, collected)

    def logits(self, h_BTD: jax.Array, *, dtype: Any = jnp.float32) -> jax.Array:
        """Final states (..., D) -> logits float32 (..., V).

        Raises:
            InputError: the checkpoint is a base-model export without a head.
        """
        if self.head is not None:
            return self.head(h_BTD, dtype)
        if not self.config.has_head:
            raise InputError("this checkpoint has no language-model head (lm_head.weight), so it gives no logits")
        return matmul(h_BTD, self.embed[...], dtype, True)

    def log_probs(
        self, h_BTD: jax.Array, targets_BT: jax.Array, *, dtype: Any = jnp.float32, block: int = 64
    ) -> jax.Array:
        """log p(target) at every position: final states (B, T, D), targets int (B, T) -> float32 (B, T).

        Works through `block` positions of all rows at a time, forward and backward, so that (B, block, V) is the
        largest array of logits that ever exists.
        """
        B, T, D = h_BTD.shape
        block = min(block, T)
        padded = -(-T // block) * block
        h_BTD = jnp.pad(h_BTD, ((0, 0), (0, padded - T), (0, 0)))
        targets_BT = jnp.pad(targets_BT, ((0, 0), (0, padded - T)))
        h_blocks = h_BTD.reshape(B, -1, block, D).swapaxes(0, 1)
        target_blocks = targets_BT.reshape(B, -1, block).swapaxes(0, 1)

        @jax.checkpoint
        def one(piece: tuple[jax.Array, jax.Array]) -> jax.Array:
            h, targets = piece
            logits = self.logits(h, dtype=dtype)
            chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
            return chosen - jax.nn.logsumexp(logits, axis=-1)

        return jax.lax.map(one, (h_blocks, target_blocks)).swapaxes(0, 1).reshape(B, padded)[:, :T]
