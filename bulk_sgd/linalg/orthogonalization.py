"""Orthogonal vectors and orthonormal bases, to rounding."""

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis, branches, units

# A second pass follows where ‖Vv‖ is at least this times ‖v − VᵀVv‖. With 1, the usual
# choice, residuals after some 40 restarts of Lanczos are up to four times as large.
_REORTHOGONALIZE = 0.01


def orthogonalize(vector, rows):
    """Splits off the part of a vector along rows that are orthonormal or zero.

    Rounding of the part removed stays behind, so a second pass follows unless that part
    was short (Daniel, Gragg, Kaufman and Stewart, 1976). Twice is enough (Giraud,
    Langou, Rozložník and van den Eshof, 2005). There is no derivative in reverse mode.
    The vector is in a unit of about its length. Returns what remains of it, and its
    inner products `(m,)` with the rows.
    """

    def remove(carry):
        vector, total, passes, _ = carry
        coefficients = basis.inner(rows, vector)
        vector = basis.subtract(vector, basis.combine(coefficients, rows))
        # Compared with the rest, so that XLA need not keep the vector before it. A
        # length that is not finite counts as long.
        left = jnp.sqrt(basis.dot(vector, vector))
        short = jnp.linalg.norm(coefficients) < _REORTHOGONALIZE * left
        return vector, total + coefficients, passes + 1, ~short

    dtype = basis.working_dtype((rows, vector))
    vector = jax.tree.map(lambda x: x.astype(dtype), vector)
    nothing = jnp.zeros(basis.num_rows(rows), dtype)
    start = vector, nothing, jnp.int32(0), jnp.asarray(True)
    unfinished = lambda carry: (carry[2] < 2) & carry[3]
    # Without a loop XLA computes the result of the first pass anew for each of its
    # readers, and rounds it differently: with JAX 0.11.2 on an H200 rows were up to
    # 1e-3 from orthogonal.
    return jax.lax.while_loop(unfinished, remove, start)[:2]


def orthonormal(rows):
    """A basis of orthonormal rows with the same span, by Cholesky QR.

    A row of zeros stays zero. A row that depends on those before it becomes its own
    rounding error, made orthonormal.
    """
    inverse_of = lambda length: jnp.where(length > 0, 1 / length, 0)
    if basis.num_rows(rows) == 1:
        return basis.scale(inverse_of(basis.norm(rows)), rows)

    def factored(index, rows):
        products, unit = _gram(rows)
        # Rows are scaled to length one: the shift would be large for the shortest.
        inverse = inverse_of(jnp.sqrt(jnp.diag(products)))
        cosines = products * jnp.outer(inverse, inverse)
        eps = jnp.finfo(products.dtype).eps
        # The shift lets dependent rows be factored; each pass leaves them less so.
        shift = jnp.where(index < 2, 10 * len(products) * eps, 0)
        identity = jnp.eye(len(products), dtype=products.dtype)
        cosines = jnp.where(identity > 0, 1 + shift, cosines)
        factor = jnp.linalg.cholesky(cosines.astype(products.dtype))
        scales = jnp.diag(inverse / unit)
        inverse = jax.scipy.linalg.solve_triangular(factor, scales, lower=True)
        return basis.combine(inverse, rows)

    # Two passes do for independent rows.
    return jax.lax.fori_loop(0, 3, factored, basis.widen(rows))


def _gram(rows):
    """The inner products of rows in units of their own, and these units `(m,)`."""
    products = basis.gram(rows, rows)
    squares = jnp.diag(products)

    def in_units():
        unit = units.power_of_two(basis.map_rows(units.largest, rows))
        scaled = basis.scale_rows(1 / unit, rows)
        return basis.gram(scaled, scaled), unit

    right = units.hold(squares, basis.size(rows) // len(squares))
    plain = lambda: (products, jnp.ones_like(squares))
    return branches.cond(~jnp.all(right), in_units, plain)


def orthonormal_range(rows):
    """Orthonormal rows that span the given ones, as far as rounding tells them apart.

    A direction that does not stand out of rounding becomes a row of zeros; Cholesky QR
    would make rows of it that are not orthogonal (Stathopoulos and Wu, *A block
    orthogonalization procedure with constant synchronization requirements*, 2002).
    """
    rows = basis.scale(1 / units.power_of_two(units.largest(rows)), rows)
    for _ in range(2):  # twice is enough
        values, vectors = jnp.linalg.eigh(basis.gram(rows, rows))
        floor = len(values) * jnp.finfo(values.dtype).eps * values[-1]
        factors = jnp.where(values > floor, jax.lax.rsqrt(values), 0)
        rows = basis.combine(basis.scale_rows(factors, vectors.T), rows)
    return rows
