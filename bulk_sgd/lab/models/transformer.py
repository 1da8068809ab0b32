"""Transformers over tokens or patches of images, without dropout."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from bulk_sgd.lab.models.layers import ACTIVATIONS, layer

PADDING = 0


class Layer(nnx.Module):
    """Self-attention, then two dense layers with four times the width between them.

    Both halves normalise their input and add their output to it.
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

        The bool mask broadcasts to (n, heads, length, length); [n, h, i, j] is whether
        position i sees position j.
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


class _Stack(nnx.Module):
    """Layers, a layer norm and a dense layer, around which networks embed."""

    def add_layers(
        self, width, out_features, *, num_layers, scan_layers, remat, init, rngs, **kind
    ):
        """Makes the layers: `block_0`, … or stacked as `blocks`, as checkpoints say."""
        self.num_layers, self.scan_layers, self.remat = num_layers, scan_layers, remat
        init = {"init": init, "rngs": rngs}
        layers = [Layer(width, **kind, **init) for _ in range(num_layers)]
        if scan_layers:
            graphs, states = zip(*map(nnx.split, layers))
            stack = lambda *arrays: jnp.stack(arrays)
            self.blocks = nnx.merge(graphs[0], jax.tree.map(stack, *states))
        else:
            for i, one in enumerate(layers):
                setattr(self, f"block_{i}", one)
        self.norm = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        if out_features is not None:
            self.dense = layer(nnx.Linear, width, width, out_features, **init)

    def through_layers(self, x, mask):
        """x (n, length, width) after all layers, normalised."""

        def through(x, split):
            graph, state = split
            return nnx.merge(graph, state)(x, mask)

        if self.remat:
            through = jax.checkpoint(through, prevent_cse=not self.scan_layers)
        if self.scan_layers:
            graph, states = nnx.split(self.blocks)
            step = lambda x, state: (through(x, (graph, state)), None)
            x, _ = jax.lax.scan(step, x, states)
        else:
            for i in range(self.num_layers):
                x = through(x, nnx.split(getattr(self, f"block_{i}")))
        return self.norm(x)


def _embedding(size, width, init, rngs):
    # PyTorch's default is standard normal, flax's has variance 1/width.
    options = {"embedding_init": jax.random.normal} if init == "torch" else {}
    return nnx.Embed(size, width, rngs=rngs, **options)


class Transformer(_Stack):
    """Embedded tokens and positions, layers, a layer norm and a dense layer.

    If `causal`, a position sees itself and earlier ones and has its own outputs, as in
    a language model. Otherwise every position sees all but padding, token 0, and the
    mean over positions gives one output. If `tied`, outputs are products with the
    embeddings of all tokens, as in GPT-2. `scan_layers` loops over parameters stacked
    along a leading axis, which compiles in the time of one layer. `remat` recomputes
    the activations in backward passes and keeps only one layer's.

    With width 64, 8 heads and 2 layers it is the network for SST-2 of Song, Ahn and
    Yun, arXiv 2405.16002, as far as they describe it.
    """

    def __init__(
        self, vocab_size, length, width, out_features, *, causal, tied, init, **stack
    ):
        self.causal, self.tied = causal, tied
        self.tokens = _embedding(vocab_size, width, init, stack["rngs"])
        self.positions = _embedding(length, width, init, stack["rngs"])
        out_features = None if tied else out_features
        self.add_layers(width, out_features, init=init, **stack)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Outputs (n, out_features), or per position, of int tokens (n, length)."""
        length = tokens.shape[1]
        real = tokens != PADDING
        mask = jnp.tri(length, dtype=bool) if self.causal else real[:, None, None]
        # Not the calls of nnx.Embed, which cast to the dtype it was made with.
        x = self.tokens.embedding[...][tokens] + self.positions.embedding[...]
        x = self.through_layers(x, mask)
        if not self.causal:
            x = jnp.sum(x * real[..., None], axis=1) / real.sum(axis=1, keepdims=True)
        return x @ self.tokens.embedding[...].T if self.tied else self.dense(x)


class ViT(_Stack):
    """Embedded patches and positions, layers, a layer norm, mean and a dense layer.

    Dosovitskiy et al., *An Image is Worth 16x16 Words*, arXiv 2010.11929, with the mean
    over patches in place of a class token, as in Beyer, Zhai and Kolesnikov, *Better
    plain ViT baselines*, arXiv 2205.01580, but learned positions. Width 192, 12 layers
    and 3 heads are its "tiny" size. `patch` is the side of a square patch.
    """

    def __init__(self, input_shape, patch, width, out_features, *, init, rngs, **stack):
        self.patch = patch
        height, columns, depth = input_shape
        options = {"init": init, "rngs": rngs}
        size = patch**2 * depth
        self.patches = layer(nnx.Linear, size, size, width, **options)
        length = height // patch * (columns // patch)
        self.positions = _embedding(length, width, **options)
        self.add_layers(width, out_features, **options, **stack)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, height, width, depth)."""
        n, height, columns, depth = inputs.shape
        side = self.patch
        x = inputs.reshape(n, height // side, side, columns // side, side, depth)
        x = jnp.swapaxes(x, 2, 3).reshape(n, -1, side**2 * depth)
        x = self.patches(x) + self.positions.embedding[...]
        x = self.through_layers(x, True)
        return self.dense(x.mean(axis=1))
