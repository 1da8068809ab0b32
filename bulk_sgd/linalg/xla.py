"""What XLA needs to be told, kept out of the mathematics.

Each function has a plain equivalent, given in its first line. XLA compiles the plain
one to something slower or larger, for the reason that follows.
"""

import collections
import functools
import math

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


def is_small(size: int) -> bool:
    """Whether a copy of so many numbers takes less than the launch of some kernels.

    Such arrays may be joined into one, since every operation on an array is compiled
    and launched on its own. Not if there are several devices: it would gather them.
    """
    return size <= 2**16 and jax.device_count() == 1


def joined(vector, copies: int = 1):
    """The leaves of a vector, with the small ones of one dtype as one flat leaf.

    `copies` is the number of vectors joined the same way, such as the rows of a basis.
    """
    leaves = jax.tree.leaves(vector)
    groups = ([leaves[i] for i in places] for places in _joins(leaves, copies))
    return [x[0] if len(x) == 1 else concatenate(x) for x in groups]


def separated(arrays, like, copies: int = 1):
    """Inverts `joined`: splits `arrays` into a vector with the shapes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    found = {}
    for array, places in zip(arrays, _joins(leaves, copies)):
        if len(places) == 1:
            found[places[0]] = array
            continue
        ends = np.cumsum([leaves[i].size for i in places])[:-1]
        for i, x in zip(places, jnp.split(array, ends)):
            found[i] = x.reshape(leaves[i].shape)
    return treedef.unflatten(found[i] for i in range(len(leaves)))


def _joins(leaves, copies):
    """For each array that `joined` makes, the places of its leaves."""
    found = collections.defaultdict(list)
    for i, x in enumerate(leaves):
        found[x.dtype if is_small(copies * x.size) else i].append(i)
    return found.values()


def concatenate(arrays):
    """Arrays one after the other as one, flat.

    XLA's CPU compiler would fuse it with its readers into a loop with a branch per
    element.
    """
    return jax.lax.optimization_barrier(jnp.concatenate([x.ravel() for x in arrays]))


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

    Large arrays of equal shape are drawn in one loop. On a single device small arrays
    are drawn in two loops, up to 4,096 numbers and above. XLA then compiles a generator
    for each loop, not for each array: generators are a third of what a solver takes to
    compile. A number depends on its key and its place alone, so small arrays are drawn
    as long as the longest of their loop and cut.
    """
    keys = jax.random.split(key, len(shapes))
    sizes = list(map(math.prod, shapes))
    places = collections.defaultdict(list)
    for i, (shape, size) in enumerate(zip(shapes, sizes)):
        loop = ("long" if size > 4096 else "short") if is_small(size) else shape
        places[loop].append(i)
    drawn = [None] * len(shapes)
    for alike in places.values():
        longest = max(sizes[i] for i in alike)
        own = {shapes[i] for i in alike}
        shape = own.pop() if len(own) == 1 else (longest,)
        draw = functools.partial(jax.random.normal, shape=shape, dtype=dtype)
        if len(alike) == 1:
            drawn[alike[0]] = draw(keys[alike[0]])
            continue
        for i, array in zip(alike, jax.lax.map(draw, keys[np.array(alike)])):
            part = array if shape == shapes[i] else array[: sizes[i]]
            drawn[i] = part.reshape(shapes[i])
    return drawn
