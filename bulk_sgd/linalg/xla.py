"""What XLA needs to be told, kept out of the mathematics.

Each function has a plain equivalent, given in its first line. XLA compiles the plain
one to something slower or larger, for the reason that follows.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np


def vmap(fn):
    """`jax.vmap(fn)`.

    A batch of one is computed without its axis, which would turn the matrix products
    inside `fn` into slower batched ones.
    """

    def mapped(batch):
        if jax.tree.leaves(batch)[0].shape[0] != 1:
            return jax.vmap(fn)(batch)
        first = lambda x: jax.lax.dynamic_index_in_dim(x, 0, keepdims=False)
        return jax.tree.map(lambda x: x[None], fn(jax.tree.map(first, batch)))

    return mapped


def update_in_place(update, tree, condition):
    """`update(tree)` if the bool scalar `condition` holds, else `tree`.

    XLA would fuse a plain update with whatever reads its result next, and so copy the
    arrays. It writes in place inside a loop, as long as it cannot know that the loop
    runs at most once.
    """
    times = condition.astype(jnp.int32)
    return jax.lax.fori_loop(0, times, lambda _, tree: update(tree), tree)


def products(one, all_at_once, left, right):
    """`all_at_once(left, right)`, the inner products of all rows of two bases.

    On a CPU the rows of `left` are multiplied one after the other, as `one(right,
    row)`: the matrix product would first make a transposed copy of `right`.
    """

    def by_row(left, right):
        return jax.lax.map(lambda row: one(right, row), left)

    return jax.lax.platform_dependent(left, right, cpu=by_row, default=all_at_once)


@functools.partial(jax.jit, static_argnames=("shapes", "dtype"))
def normal(key, shapes, dtype):
    """A list with `jax.random.normal` of each shape, each with a key of its own.

    Arrays of equal shape are drawn in a loop, so that the generator is compiled once
    per shape: it would be most of what a solver takes to compile.
    """
    keys = jax.random.split(key, len(shapes))
    places = collections.defaultdict(list)
    for i, shape in enumerate(shapes):
        places[shape].append(i)
    drawn = [None] * len(shapes)
    for shape, alike in places.items():
        draw = functools.partial(jax.random.normal, shape=shape, dtype=dtype)
        if len(alike) == 1:
            drawn[alike[0]] = draw(keys[alike[0]])
            continue
        for i, array in zip(alike, jax.lax.map(draw, keys[np.array(alike)])):
            drawn[i] = array
    return drawn
