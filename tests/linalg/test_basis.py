"""Random vectors, and what is compiled outside of `jit`; tests of the solvers cover the
rest of the linear algebra.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import subspace

LIKE = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4), "c": jnp.zeros((2, 3))}
ROWS = basis.zeros(LIKE, 3)


def test_every_leaf_has_random_numbers_of_its_own():
    key = jax.random.key(3)
    drawn = basis.random_normal(key, LIKE)
    for own, (name, leaf) in zip(jax.random.split(key, 3), LIKE.items()):
        expected = jax.random.normal(own, leaf.shape)
        np.testing.assert_array_equal(drawn[name], expected)


def test_numbers_do_not_depend_on_what_is_drawn_with_them():
    sizes = (3, 200, 4_097, 9_000, 2**16 + 1)  # of both loops, and one on its own
    key = jax.random.key(3)
    drawn = basis.random_normal(key, [jnp.zeros(size) for size in sizes])
    for own, numbers in zip(jax.random.split(key, len(sizes)), drawn):
        expected = jax.random.normal(own, numbers.shape)
        np.testing.assert_array_equal(numbers, expected)


CALLS = {
    "random_normal": lambda seed: basis.random_normal(jax.random.key(seed), LIKE),
    "gram": lambda seed: basis.gram(ROWS, basis.scale(seed, ROWS)),
    "energies": lambda seed: bulk_sgd.energies(
        jax.tree_util.Partial(basis.scale, jnp.float32(seed)), subspace.empty(LIKE, 3)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_loops_are_compiled_once_outside_of_jit(call):
    compilations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    call(0)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for seed in (1, 2):
            call(seed)
        assert not compilations
        jax.jit(lambda x: 3 * x + 1)(LIKE["b"])
        assert compilations  # the listener hears them
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
