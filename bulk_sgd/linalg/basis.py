"""Bases of pytree vectors: the linear algebra that the solvers and projections share.

A *vector* is a pytree shaped like the parameters. A *basis* of m vectors is the
same pytree with one leading axis: leaves of shape `(m, *leaf.shape)`. Rows need not
be orthonormal, and a row of zeros stands for "no vector here".

Every product is contracted leaf by leaf with `precision=HIGHEST`: TPU and recent
GPUs otherwise round float32 operands to bfloat16 or TF32, which destroys the
orthogonality of a Krylov basis. Nothing here flattens or concatenates leaves, so a
sharded basis stays sharded and a contraction costs one all-reduce of m numbers.
"""

import collections
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

_HIGHEST = jax.lax.Precision.HIGHEST
# A second pass follows where ‖Vv‖ is at least this times ‖v − VᵀVv‖. With 1, which is
# usual, residuals after some 40 restarts of Lanczos are up to four times as large.
_REORTHOGONALIZE = 0.01


def working_dtype(tree):
    """The dtype of basis arithmetic for `tree`: float32, or float64 if a leaf is."""
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
    """A vector of independent standard normal entries shaped like `like`.

    Leaves of one shape are drawn in a loop: the same numbers, but code to draw them is
    compiled once per shape, where it would be most of what a solver takes to compile.
    """
    leaves, treedef = jax.tree.flatten(like)
    shapes = tuple(jnp.shape(x) for x in leaves)
    return treedef.unflatten(_draw(key, shapes, dtype or working_dtype(like)))


@functools.partial(jax.jit, static_argnames=("shapes", "dtype"))
def _draw(key, shapes, dtype):
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
        for i, row in zip(alike, jax.lax.map(draw, keys[np.array(alike)])):
            drawn[i] = row
    return drawn


def inner(basis, vector):
    """Inner products of each row of `basis` with `vector`, shape `(m,)`."""

    def contract(rows, x):
        axes = tuple(range(x.ndim))
        return jnp.tensordot(
            rows, x, (tuple(a + 1 for a in axes), axes), precision=_HIGHEST
        )

    return _sum_leaves(jax.tree.map(contract, basis, vector))


@functools.partial(jax.jit, inline=True)
def gram(basis, other):
    """Inner products of all rows, shape `(m, p)`: entry ij is <basis_i, other_j>."""

    def at_once(basis, other):
        def contract(x, y):
            axes = tuple(range(1, x.ndim))
            return jnp.tensordot(x, y, (axes, axes), precision=_HIGHEST)

        return _sum_leaves(jax.tree.map(contract, basis, other))

    def by_row(basis, other):  # the CPU's matrix product would transpose `other`
        return jax.lax.map(lambda x: inner(other, x), basis)

    if num_rows(basis) == 1:
        return inner(other, row(basis, 0))[None]
    return jax.lax.platform_dependent(basis, other, cpu=by_row, default=at_once)


def combine(coefficients, basis):
    """Linear combinations of the rows.

    Args:
      coefficients: `(m,)` for one vector, or `(p, m)` for a basis of p rows.
      basis: pytree with leaves `(m, *leaf.shape)`.

    Returns:
      The vector `sum_i coefficients[i] basis_i`, or the basis whose row j is
      `sum_i coefficients[j, i] basis_i`.
    """
    return jax.tree.map(
        lambda rows: jnp.tensordot(coefficients, rows, 1, precision=_HIGHEST), basis
    )


def orthogonalize(vector, basis):
    """`vector` without its part along the orthonormal or zero rows, and that part.

    One pass leaves what rounding makes of the part removed, so that a second follows
    unless that was short (Daniel, Gragg, Kaufman and Stewart, 1976); twice is enough
    (Giraud, Langou, Rozložník and van den Eshof, 2005). In a loop, lest XLA compute
    what the first pass leaves once for each of its readers, with other roundings: with
    JAX 0.11.2 on an H200 rows came out to 1e-3 of orthogonal. It has no derivative in
    reverse mode.

    Returns:
      The remaining vector, and the inner products `(m,)` with the rows.
    """

    def remove(carry):
        vector, total, passes, _ = carry
        coefficients = inner(basis, vector)
        vector = subtract(vector, combine(coefficients, basis))
        # Against the rest, lest `vector` be kept; what is not finite counts as long.
        short = jnp.linalg.norm(coefficients) < _REORTHOGONALIZE * norm(vector)
        return vector, total + coefficients, passes + 1, ~short

    dtype = working_dtype((basis, vector))
    vector = jax.tree.map(lambda x: x.astype(dtype), vector)
    nothing = jnp.zeros(num_rows(basis), dtype)
    start = vector, nothing, jnp.int32(0), jnp.asarray(True)
    unfinished = lambda carry: (carry[2] < 2) & carry[3]
    return jax.lax.while_loop(unfinished, remove, start)[:2]


def orthonormal(basis):
    """A basis of orthonormal rows with the same span, by Cholesky QR.

    A row of zeros stays one. Where rows depend on those before them, their rounding is
    what is made orthonormal.
    """
    inverse_of = lambda length: jnp.where(length > 0, 1 / length, 0)
    if num_rows(basis) == 1:
        return scale(inverse_of(norm(basis)), basis)

    def factored(index, basis):
        products = gram(basis, basis)
        # In units of their lengths, lest the shift be long for the shortest rows.
        scales = jnp.diag(inverse_of(jnp.sqrt(jnp.diag(products))))
        cosines = scales @ products @ scales
        eps = jnp.finfo(products.dtype).eps
        # It makes dependent rows factorable; what that leaves is less and less so.
        shift = jnp.where(index < 2, 10 * len(products) * eps, 0)
        identity = jnp.eye(len(products), dtype=products.dtype)
        cosines = jnp.where(identity > 0, 1 + shift, cosines)
        factor = jnp.linalg.cholesky(cosines.astype(products.dtype))
        inverse = jax.scipy.linalg.solve_triangular(factor, scales, lower=True)
        return combine(inverse, basis)

    return jax.lax.fori_loop(0, 3, factored, widen(basis))  # two for independent rows


def row(basis, index):
    """Row `index` of the basis (a traced index is fine)."""
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_index_in_dim(rows, index, keepdims=False), basis
    )


def num_rows(basis) -> int:
    """Number of rows m of the basis."""
    return jax.tree.leaves(basis)[0].shape[0]


def block(basis, start, size: int):
    """The `size` rows from `start` on (which may be traced), as a basis."""
    return jax.tree.map(
        lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size), basis
    )


def map_rows(fn, basis):
    """`fn(row)` for each row, stacked."""
    if num_rows(basis) == 1:  # a batch of one would cost its products their shape
        return jax.tree.map(lambda x: x[None], fn(row(basis, 0)))
    return jax.vmap(fn)(basis)


def put(basis, start, rows, write):
    """The basis with its rows from `start` on replaced by `rows`, where `write`.

    A loop that XLA does not know to run once: it writes in place, where a straight
    write would be fused with whatever reads the basis next, and the basis copied.

    Args:
      basis: pytree with leaves `(m, *leaf.shape)`.
      start: int scalar.
      rows: pytree with leaves `(p, *leaf.shape)`.
      write: bool scalar.
    """

    def once(_, basis):
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, start, 0),
            basis,
            rows,
        )

    return jax.lax.fori_loop(0, write.astype(jnp.int32), once, basis)


def set_row(basis, index, vector):
    """The basis with row `index` replaced by `vector`."""
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
    """Euclidean norm of a vector."""
    return jnp.sqrt(dot(vector, vector))


def unit(vector):
    """`vector` over its norm."""
    return scale(1 / norm(vector), vector)


def scale(factor, vector):
    """`factor * vector`."""
    return jax.tree.map(lambda x: factor * x, vector)


def subtract(x, y):
    """`x - y`."""
    return jax.tree.map(operator.sub, x, y)


def place(vector, sharding):
    """`vector` laid out over devices as `sharding` says; None leaves it to XLA."""
    if sharding is None:
        return vector
    return jax.lax.with_sharding_constraint(vector, sharding)


def place_rows(basis, sharding):
    """A basis with each row laid out as the `NamedSharding`s say of one vector."""
    return place(basis, row_sharding(sharding))


def row_sharding(sharding):
    """The layout of a basis whose rows are laid out like `sharding`, all on the spot.

    >>> mesh = jax.sharding.AbstractMesh((1,), ("x",))
    >>> tuple(row_sharding(NamedSharding(mesh, PartitionSpec("x"))).spec)
    (None, 'x')
    """
    return jax.tree.map(
        lambda s: NamedSharding(
            s.mesh, PartitionSpec(None, *s.spec), memory_kind=s.memory_kind
        ),
        sharding,
    )


def where(predicate, x, y):
    """`x` where the scalar `predicate` holds, else `y`, leaf by leaf."""
    return jax.tree.map(functools.partial(jnp.where, predicate), x, y)


def scale_rows(factors, basis):
    """The basis with row i multiplied by `factors[i]`, in the dtype of the rows."""
    return jax.tree.map(
        lambda rows: _per_row(factors.astype(rows.dtype), rows) * rows, basis
    )


def where_rows(keep, basis, other=None):
    """Row i of `basis` where `keep[i]`, else of `other`, by default zeros."""
    other = jax.tree.map(jnp.zeros_like, basis) if other is None else other
    return jax.tree.map(lambda x, y: jnp.where(_per_row(keep, x), x, y), basis, other)


def add_outer(basis, coefficients, vector):
    """The basis with `coefficients[i] * vector` added to row i."""
    return jax.tree.map(
        lambda rows, x: rows + _per_row(coefficients, rows) * x, basis, vector
    )


def squared_norms(basis):
    """The squared norm of each row, shape `(m,)`."""
    return map_rows(lambda row: dot(row, row), basis)


def _per_row(values, rows):
    """A value per row, shaped to broadcast against the rows of a leaf."""
    return values.reshape(-1, *(1,) * (rows.ndim - 1))


def _sum_leaves(tree):
    return functools.reduce(operator.add, jax.tree.leaves(tree))
