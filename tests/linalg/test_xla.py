"""Leaves joined into one, and taken apart again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bulk_sgd.linalg import xla


def random_vector():
    keys = iter(jax.random.split(jax.random.key(0), 5))
    return {
        "bias": jax.random.normal(next(keys), (7,)),
        "half": jax.random.normal(next(keys), (3, 2), jnp.bfloat16),
        "kernel": jax.random.normal(next(keys), (300, 250)),
        "scalar": jax.random.normal(next(keys), ()),
        "stack": jax.random.normal(next(keys), (2, 3, 4)),
    }


@pytest.mark.parametrize("copies", [1, 5_000])
def test_separated_undoes_joined(monkeypatch, copies):
    """Leaves of one dtype are joined if all copies of them are small."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    vector = random_vector()
    arrays = xla.joined(vector, copies)
    sizes = [6, 7 + 1 + 24, 75_000] if copies == 1 else [6, 7 + 1, 24, 75_000]
    assert sorted(x.size for x in arrays) == sizes
    found = xla.separated(arrays, vector, copies)
    jax.tree.map(np.testing.assert_array_equal, found, vector)


def test_nothing_is_joined_on_several_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    vector = random_vector()
    found = xla.separated(xla.joined(vector), vector)
    assert all(x is y for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(vector)))
