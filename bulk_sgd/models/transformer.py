"""Transformers over sequences of tokens, without dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from bulk_sgd.models.layers import ACTIVATIONS, layer

PADDING = 0


class Block(nnx.Module):
    """Self-attention, then two dense layers of four times the width between them.

    Each reads its input layer-normalised and adds its output to it.

    >>> block = Block(8, 2, "gelu", init="torch", rngs=nnx.Rngs(0))
    >>> block(jnp.ones((5, 3, 8)), jnp.tri(3, dtype=bool)).shape
    (5, 3, 8)
    """

    def __init__(self, width, num_heads, activation, *, init, rngs):
        self.activation = ACTIVATIONS[activation]
        self.num_heads = num_heads
        norm = lambda size: nnx.LayerNorm(size, use_fast_variance=False, rngs=rngs)
        dense = lambda a, b: layer(nnx.Linear, a, a, b, init=init, rngs=rngs)
        self.norm_attention = norm(width)
        self.attention_in = dense(width, 3 * width)
        self.attention_out = dense(width, width)
        self.norm_dense = norm(width)
        self.dense_in = dense(width, 4 * width)
        self.dense_out = dense(4 * width, width)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Outputs like x (n, length, width).

        The mask, bool, broadcasts to (n, heads, length, length): it is true where a
        position, in the last axis but one, sees another, in the last.
        """
        n, length, width = x.shape
        mixed = self.attention_in(self.norm_attention(x))
        mixed = mixed.reshape(n, length, 3, self.num_heads, -1)
        query, key, value = jnp.moveaxis(mixed, 2, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key)
        scores = scores / math.sqrt(width // self.num_heads)
        # Not -inf, whose derivatives are not numbers.
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
        seen = jnp.einsum("nhqk,nkhd->nqhd", weights, value)
        x = x + self.attention_out(seen.reshape(n, length, width))
        return x + self.dense_out(self.activation(self.dense_in(self.norm_dense(x))))


class Transformer(nnx.Module):
    """Embedded tokens and positions, blocks, a layer norm and a dense layer.

    Arguments:
      vocab_size: tokens are below it.
      length: positions of one example.
      width: of the embeddings, a multiple of num_heads.
      num_layers: number of blocks.
      num_heads: of the attention of each.
      out_features: of the dense layer.
      activation: between the dense layers of a block.
      causal: a position sees itself and those before it, and has outputs of its own,
        as in a language model. Otherwise all see all that are not padding, token 0,
        and the outputs are those of their mean.
      init: that of dense layers; with 'torch' embeddings are standard normal as there,
        with 'lecun_normal' normal with variance 1/width, flax's default.
      tied: the outputs are the products with the embeddings of all tokens, as in GPT-2,
        in place of a dense layer; out_features must then be vocab_size.

    With width 64, 8 heads and 2 layers it is the network for SST-2 of Song, Ahn and
    Yun, *Does SGD really happen in tiny subspaces?*, arXiv 2405.16002, as far as they
    describe it.

    >>> options = {"causal": False, "init": "torch", "rngs": nnx.Rngs(0)}
    >>> transformer = Transformer(9, 4, 8, 2, 2, 3, "gelu", **options)
    >>> transformer(jnp.array([[5, 8, 3, 0], [2, 0, 0, 0]])).shape
    (2, 3)
    """

    def __init__(
        self,
        vocab_size,
        length,
        width,
        num_layers,
        num_heads,
        out_features,
        activation,
        *,
        causal,
        init,
        rngs,
        tied=False,
    ):
        self.causal = causal
        self.tied = tied
        self.num_layers = num_layers
        options = {"rngs": rngs}
        if init == "torch":
            options["embedding_init"] = jax.random.normal
        self.tokens = nnx.Embed(vocab_size, width, **options)
        self.positions = nnx.Embed(length, width, **options)
        options = {"init": init, "rngs": rngs}
        for i in range(num_layers):
            setattr(self, f"block_{i}", Block(width, num_heads, activation, **options))
        self.norm = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        if not tied:
            self.dense = layer(nnx.Linear, width, width, out_features, **options)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Outputs of int tokens (n, length).

        They are (n, length, out_features) where causal, else (n, out_features).
        """
        length = tokens.shape[1]
        real = tokens != PADDING
        mask = jnp.tri(length, dtype=bool) if self.causal else real[:, None, None]
        # Not the calls of nnx.Embed, which cast to the dtype it was made with.
        x = self.tokens.embedding[...][tokens] + self.positions.embedding[...]
        for i in range(self.num_layers):
            x = getattr(self, f"block_{i}")(x, mask)
        x = self.norm(x)
        if not self.causal:
            x = jnp.sum(x * real[..., None], axis=1) / real.sum(axis=1, keepdims=True)
        return x @ self.tokens.embedding[...].T if self.tied else self.dense(x)
