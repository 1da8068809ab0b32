"""Linear operators on vectors: callables that pass through `jax.jit`, and compose.

An operator, or *matvec*, is any callable that maps vectors linearly to vectors, without
its matrix. Vectors are pytrees like the parameters. An operator may also have a method
`linearize()`. It does the work that all products at one point share, such as the primal
pass of a network, and returns a plain matvec.

The operators of this library are pytrees whose leaves are their arrays, so that two
solves on one network at different parameters share one compiled program. A plain Python
function inside an operator is static, as everywhere in JAX. If a value that it reads
besides its arguments changes, JAX compiles anew (see `captured`). Put arrays that
change between calls in an `Objective` or a `jax.tree_util.Partial`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bulk_sgd import checks, functions
from bulk_sgd.curvature.captured import Captured
from bulk_sgd.linalg.layout import check_layout, place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wrapped:
    """An operator around another one: v ↦ `wrap(matvec, v, *arrays, *static)`.

    `wrap` distinguishes the kinds; they share a class. JAX 0.10 treats the treedefs of
    two dataclasses with equal static fields as equal, so with a class for each kind
    `jit` could run the program of the wrong kind. `wrap` is a function of a module, so
    that it is the same object at every call.
    """

    wrap: Callable = dataclasses.field(metadata={"static": True})
    matvec: Any
    arrays: tuple = ()
    static: tuple = dataclasses.field(default=(), metadata={"static": True})

    def __call__(self, vector):
        return self.wrap(self.matvec, vector, *self.arrays, *self.static)

    def linearize(self) -> Callable:
        """The same around `linearize(self.matvec)`."""
        matvec = linearize(self.matvec)
        return lambda vector: self.wrap(matvec, vector, *self.arrays, *self.static)


def as_pytree(fn):
    """`fn` itself if it is a callable pytree, else wrapped so that it is one.

    A `Partial` stays one, around a function that knows what it reads.
    """
    if isinstance(fn, Captured):
        return fn
    if type(fn) is jax.tree_util.Partial and fn.func is not _call:
        return jax.tree_util.Partial(_call, Captured(fn.func), *fn.args, **fn.keywords)
    return Captured(fn) if jax.tree_util.all_leaves([fn]) else fn


def _call(captured, *args, **kwargs):
    return captured(*args, **kwargs)


def linearize(matvec):
    """`matvec.linearize()` where there is one, else `matvec`; products are checked.

    Call it inside the traced function that uses the result.
    """
    fast = matvec.linearize() if hasattr(matvec, "linearize") else matvec
    return functools.partial(apply, fast)


def sharded(matvec, sharding):
    """Returns an operator whose vectors are laid out over devices like the parameters.

    Its products equal those of `matvec`; only their layout is fixed. Without this
    constraint XLA chooses the layout: perhaps a whole copy of a basis on every device,
    or one layout inside a loop and another around it. With the constraint, a solver
    keeps its basis in the layout of the parameters. XLA derives the collectives.

    Args:
      matvec: a callable from vector to vector.
      sharding: `NamedSharding`s of the parameters, on a mesh with Auto axes: a pytree
        like the parameters, or a prefix of it. None returns `matvec` itself.

    Returns:
      A callable pytree like `matvec`.

    Raises:
      ValueError: if `sharding` is not of the form above, or does not fit a vector.

    Example:
      >>> import jax, jax.numpy as jnp, bulk_sgd
      >>> auto = (jax.sharding.AxisType.Auto,)
      >>> mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=auto)
      >>> sharding = jax.NamedSharding(mesh, jax.P("fsdp"))
      >>> params = jax.device_put(jnp.arange(8.0), sharding)
      >>> matvec = bulk_sgd.hessian(lambda x: jnp.sum(x**3), params)
      >>> pairs = bulk_sgd.top_eigenpairs(
      ...     bulk_sgd.sharded(matvec, sharding), jnp.ones(8), rank=1)
      >>> print(pairs.eigenvalues.round(2))
      [42.]
    """
    functions.check("matvec", matvec, "vector")
    if sharding is None:
        return matvec
    check_layout(sharding, kind=jax.sharding.Sharding)
    leaves, structure = jax.tree.flatten(sharding)
    static = tuple(leaves), structure
    return Wrapped(_in_layout, as_pytree(matvec), static=static)


def _in_layout(matvec, vector, shardings, structure):
    sharding = structure.unflatten(shardings)
    sharding = check_layout(sharding, vector, kind=jax.sharding.Sharding)
    return place(apply(matvec, place(vector, sharding)), sharding)


def spans_devices(matvec) -> bool:
    """Whether the vectors of a matvec may lie on several devices.

    The layouts of `sharded` inside it say so; without any, vectors may lie wherever
    this process has devices.
    """
    has_layout = lambda x: isinstance(x, Wrapped) and x.wrap is _in_layout
    found = filter(has_layout, jax.tree.leaves(matvec, is_leaf=has_layout))
    layouts = [layout for operator in found for layout in operator.static[0]]
    if layouts:
        return any(layout.num_devices > 1 for layout in layouts)
    return jax.device_count() > 1


def apply(matvec, vector):
    """`matvec(vector)`; raises ArgumentError unless it is a vector like `vector`."""
    result = functions.call("matvec", matvec, vector)

    def fits(x, y):
        if not checks.is_data(x):
            return False
        dtype = jnp.promote_types(jnp.result_type(x), y.dtype)
        return jnp.shape(x) == y.shape and dtype == y.dtype

    trees = result, vector
    same = jax.tree.structure(result) == jax.tree.structure(vector)
    if not same or not all(map(fits, *map(jax.tree.leaves, trees))):
        found, expected = (jax.tree.map(checks.describe, tree) for tree in trees)
        raise checks.ArgumentError(
            "matvec",
            f"returned {found}; it must return a vector like its argument, {expected}.",
        )
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), result, vector)
