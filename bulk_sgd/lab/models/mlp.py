"""Dense networks."""

import itertools

import jax
from flax import nnx

from bulk_sgd.lab.models.layers import ACTIVATIONS, layer


# Layers are attributes `dense_0`, … rather than items of a list, because parameters in
# a list have integer keys, which checkpoints turn into strings.
class MLP(nnx.Module):
    """Dense layers with an activation between them; flattens its inputs.

    With tanh and sizes 784-200-200-10 it is the MNIST network of Song, Ahn and Yun,
    arXiv 2405.16002. Without hidden layers it is linear in its inputs.
    """

    def __init__(self, in_features, hidden, out_features, activation, *, init, rngs):
        self.activation = ACTIVATIONS[activation]
        self.num_hidden = len(hidden)
        sizes = (in_features, *hidden, out_features)
        for i, pair in enumerate(itertools.pairwise(sizes)):
            dense = layer(nnx.Linear, pair[0], *pair, init=init, rngs=rngs)
            setattr(self, f"dense_{i}", dense)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs (n, out_features) of inputs (n, …) with in_features each."""
        x = inputs.reshape(len(inputs), -1)
        for i in range(self.num_hidden):
            x = self.activation(getattr(self, f"dense_{i}")(x))
        return getattr(self, f"dense_{self.num_hidden}")(x)
