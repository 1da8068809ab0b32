"""Bases of pytree vectors: the linear algebra that the solvers and projections share.

A *vector* is a pytree shaped like the parameters. A *basis* of m vectors is the same
pytree with one leading axis: leaves of shape `(m, *leaf.shape)`. Rows need not be
orthonormal, and a row of zeros stands for "no vector here".

Every product is contracted leaf by leaf with `precision=HIGHEST`: TPUs and recent GPUs
otherwise round float32 operands to bfloat16 or TF32, which destroys the orthogonality
of a Krylov basis. Nothing here flattens or joins leaves on several devices, so a basis
that is sharded stays so, and a contraction costs one all-reduce of m numbers.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import branches, units, xla

_HIGHEST = jax.lax.Precision.HIGHEST


class Form:
    """A basis in another form than dense rows, such as `factors.Factored`.

    It has its own `inner`, `gram` and `combine`, and `coordinates`, a dense basis of
    the same inner products. `lift` makes a vector of a row of coordinates, and `mix`
    changes all rows by a function of the coordinates. What would change a single row is
    refused.
    """


def working_dtype(tree):
    """The dtype of arithmetic with `tree`: float32, or float64 if a leaf has it."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(tree))


def size(vector) -> int:
    """Number of scalars in `vector`."""
    return sum(leaf.size for leaf in jax.tree.leaves(vector))


def cast_like(vector, like):
    """`vector` with the dtypes of `like`."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), vector, like)


def widen(vector):
    """`vector` in the working dtype of its tree."""
    dtype = working_dtype(vector)
    return jax.tree.map(lambda x: x.astype(dtype), vector)


def zeros(like, num_rows: int, dtype=None):
    """A basis of `num_rows` zero rows for vectors shaped like `like`."""
    dtype = dtype or working_dtype(like)
    return jax.tree.map(lambda x: jnp.zeros((num_rows, *jnp.shape(x)), dtype), like)


def random_normal(key, like, dtype=None):
    """A vector of independent standard normal entries shaped like `like`."""
    leaves, treedef = jax.tree.flatten(like)
    shapes = tuple(jnp.shape(x) for x in leaves)
    return treedef.unflatten(xla.normal(key, shapes, dtype or working_dtype(like)))


def random_signs(key, like):
    """A vector of independent entries ±1 with the shapes and dtypes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
        [jax.random.rademacher(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
    )


def inner(basis, vector):
    """Inner products of each row of `basis` with `vector`, shape `(m,)`."""
    if isinstance(basis, Form):
        return basis.inner(vector)

    def contract(rows, x):
        axes = tuple(range(x.ndim))
        return jnp.tensordot(
            rows, x, (tuple(a + 1 for a in axes), axes), precision=_HIGHEST
        )

    return _sum_leaves(jax.tree.map(contract, basis, vector))


@functools.partial(jax.jit, inline=True)
def gram(basis, other):
    """Inner products of all rows, shape `(m, p)`: entry ij is ⟨basis_i, other_j⟩."""
    if isinstance(basis, Form):
        return basis.gram(other)
    if isinstance(other, Form):
        return other.gram(basis).T

    def at_once(basis, other):
        def contract(x, y):
            axes = tuple(range(1, x.ndim))
            return jnp.tensordot(x, y, (axes, axes), precision=_HIGHEST)

        return _sum_leaves(jax.tree.map(contract, basis, other))

    if num_rows(basis) == 1:
        return inner(other, row(basis, 0))[None]
    return xla.products(inner, at_once, basis, other)


def combine(coefficients, basis):
    """Linear combinations of the rows.

    Coefficients `(m,)` give a vector, coefficients `(p, m)` a basis of p rows.
    """
    if isinstance(basis, Form):
        return basis.combine(coefficients)
    return jax.tree.map(
        lambda rows: jnp.tensordot(coefficients, rows, 1, precision=_HIGHEST), basis
    )


def row(basis, index):
    """Row `index` of the basis, dense; the index may be traced."""
    if isinstance(basis, Form):
        return basis.lift(row(basis.coordinates, index))
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_index_in_dim(rows, index, keepdims=False), basis
    )


def dense(basis):
    """The basis with dense rows, made one after the other."""
    return map_in_turn(lambda row: row, basis) if isinstance(basis, Form) else basis


def like(basis):
    """The shapes and dtypes of one row, dense."""
    return jax.eval_shape(lambda basis: row(basis, 0), basis)


def num_rows(basis) -> int:
    """Number of rows m of the basis."""
    if isinstance(basis, Form):
        return num_rows(basis.coordinates)
    return jax.tree.leaves(basis)[0].shape[0]


def take_rows(basis, start, size: int):
    """The `size` rows from `start` on, which may be traced, as a basis."""
    if isinstance(basis, Form):
        return basis.mix(lambda rows: take_rows(rows, start, size))
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size), basis
    )


def map_rows(fn, basis):
    """`fn(row)` for each dense row, stacked."""
    _need_rows("map_rows", basis)
    return xla.vmap(fn)(basis)


def map_in_turn(fn, basis):
    """`fn(row)` for each row, one after the other, stacked."""
    if isinstance(basis, Form):
        return jax.lax.map(lambda row: fn(basis.lift(row)), basis.coordinates)
    return jax.lax.map(fn, basis)


def put(basis, start, rows, write):
    """The basis with its rows from `start` on replaced by `rows`, if `write` holds."""
    _need_rows("put", basis)

    def update(basis):
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 0),
            basis,
            rows,
        )

    return xla.update_in_place(update, basis, write)


def set_row(basis, index, vector):
    """The basis with row `index` replaced by `vector`."""
    _need_rows("set_row", basis)
    return jax.tree.map(
        lambda rows, x: jax.lax.dynamic_update_index_in_dim(rows, x, index, 0),
        basis,
        vector,
    )


def dot(x, y):
    """Inner product of two vectors, in the working dtype."""
    dtype = working_dtype(x)

    def contract(a, b):  # `vdot` would flatten, and so gather, a sharded leaf
        a, b = a.astype(dtype), b.astype(dtype)
        return jnp.tensordot(a, b, a.ndim, precision=_HIGHEST)

    return _sum_leaves(jax.tree.map(contract, x, y))


def norm(vector):
    """Euclidean norm of a vector, also where squares of its entries leave the dtype."""
    vector = xla.joined(vector)
    square, count = dot(vector, vector), size(vector)
    in_units = lambda: norm_in_units(vector, units.for_squares(square, count))
    plain = lambda: units.root(square)
    return branches.cond(~units.hold(square, count), in_units, plain)


def norm_in_units(vector, unit=None):
    """`norm`, without a branch, in a unit that by default takes one more pass."""
    unit = units.power_of_two(units.largest(vector)) if unit is None else unit
    scaled = scale(1 / unit, vector)
    return unit * units.root(dot(scaled, scaled))


def norms(basis):
    """The norm of each row, shape `(m,)`."""
    return map_rows(norm, basis.coordinates if isinstance(basis, Form) else basis)


def unit(vector):
    """`vector` over its norm."""
    return divide(vector, norm(vector))


def divide(vector, length):
    """`vector / length`, also where the inverse of the length leaves the dtype."""
    unit = units.power_of_two(length)
    return scale(unit / length, scale(1 / unit, vector))


def scale(factor, vector):
    """`factor * vector`."""
    _need_rows("scale", vector)
    return jax.tree.map(lambda x: factor * x, vector)


def subtract(x, y):
    """`x - y`."""
    _need_rows("subtract", x)
    return jax.tree.map(operator.sub, x, y)


def where(predicate, x, y):
    """`x` where the scalar `predicate` holds, else `y`, leaf by leaf."""
    return jax.tree.map(functools.partial(jnp.where, predicate), x, y)


def scale_rows(factors, basis):
    """The basis with row i multiplied by `factors[i]`, in the dtype of the rows."""
    if isinstance(basis, Form):
        return basis.mix(lambda rows: scale_rows(factors, rows))
    return jax.tree.map(
        lambda rows: _per_row(factors.astype(rows.dtype), rows) * rows, basis
    )


def where_rows(keep, basis, other=None):
    """Row i of `basis` where `keep[i]`, else of `other`, by default zeros."""
    if isinstance(basis, Form) and other is None:
        return basis.mix(lambda rows: where_rows(keep, rows))
    _need_rows("where_rows with other rows", basis)
    other = jax.tree.map(jnp.zeros_like, basis) if other is None else other
    return jax.tree.map(lambda x, y: jnp.where(_per_row(keep, x), x, y), basis, other)


def add_outer(basis, coefficients, vector):
    """The basis with `coefficients[i] * vector` added to row i."""
    _need_rows("add_outer", basis)
    return jax.tree.map(
        lambda rows, x: rows + _per_row(coefficients, rows) * x, basis, vector
    )


def squared_norms(basis):
    """The squared norm of each row, shape `(m,)`, for rows of about length one."""
    rows = basis.coordinates if isinstance(basis, Form) else basis
    return map_rows(lambda row: dot(row, row), rows)


def _per_row(values, rows):
    """A value per row, shaped to broadcast against the rows of a leaf."""
    return values.reshape(-1, *(1,) * (rows.ndim - 1))


def _need_rows(name, basis):
    if isinstance(basis, Form):
        raise TypeError(f"{name} needs dense rows; it got a {type(basis).__name__}.")


def _sum_leaves(tree):
    return functools.reduce(operator.add, jax.tree.leaves(tree))
