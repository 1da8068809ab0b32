"""Leaves joined into one, and taken apart again."""

import jax
import jax.numpy as jnp
import numpy as np

from bulk_sgd.linalg import xla


def test_separated_undoes_joined():
    keys = iter(jax.random.split(jax.random.key(0), 5))
    vector = {
        "bias": jax.random.normal(next(keys), (7,)),
        "half": jax.random.normal(next(keys), (3, 2), jnp.bfloat16),
        "kernel": jax.random.normal(next(keys), (300, 250)),  # too large to be joined
        "scalar": jax.random.normal(next(keys), ()),
        "stack": jax.random.normal(next(keys), (2, 3, 4)),
    }
    arrays = xla.joined(vector)
    assert sorted(x.size for x in arrays) == [6, 7 + 1 + 24, 75_000]
    jax.tree.map(np.testing.assert_array_equal, xla.separated(arrays, vector), vector)
