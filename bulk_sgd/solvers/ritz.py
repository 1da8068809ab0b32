"""Ritz pairs of a projected matrix that fills up row by row."""

import functools

import jax
import jax.numpy as jnp

# Rounding errors of one step, in units of eps times the largest Ritz value: a smaller
# residual means nothing, and a shorter new direction is noise.
ROUNDING_UNITS = 16
ORDERS = {"largest": lambda x: x, "smallest": lambda x: -x, "magnitude": jnp.abs}


def ritz_pairs(projected, size, bound, order):
    """Eigenpairs of the first `size` rows of the projected matrix, preferred first.

    A diagonal that no true eigenvalue reaches completes the other rows, so that none of
    them shows up as a false zero. `bound` is at least max|θ|, as from `gershgorin`;
    `order` is largest at the preferred eigenvalue. Returns the values `(m,)`, the
    vectors as columns `(m, m)`, and max|θ|.
    """
    index = jnp.arange(projected.shape[0])
    reached = index < size
    # Below -max|θ| with some room, and no further: errors grow with the largest entry.
    filler = jnp.where(reached, 0, jnp.where(bound > 0, -1.25 * bound, -1))
    values, vectors = _eigh(projected + jnp.diag(filler))
    true = index >= index.size - size  # eigh ascends: fillers come first
    ranking = jnp.argsort(jnp.where(true, order(values), -jnp.inf), descending=True)
    magnitude = jnp.max(jnp.where(true, jnp.abs(values), 0))
    return values[ranking], vectors[:, ranking], magnitude


def watch(values, residuals, rank, num_guards, tolerance, order):
    """Two bools on the `num_guards` pairs that follow the first `rank`.

    The first says whether all have converged; the second, whether those that have not
    are too far off to rise to the pairs wanted, by four times their residuals.
    """
    guards = slice(rank, rank + num_guards)
    known = residuals[guards] <= tolerance
    reach = order(values[guards]) + 4 * residuals[guards] - tolerance
    lower = reach <= order(values[rank - 1])
    return jnp.all(known), jnp.all(known | lower)


def gershgorin(matrix):
    """A bound on the largest magnitude of the eigenvalues."""
    return jnp.max(jnp.sum(jnp.abs(matrix), axis=1))


def _eigh(matrix):
    """`jnp.linalg.eigh`, on NVIDIA GPUs by QR.

    For up to 32 rows JAX takes Jacobi's method there, which was half as fast and left
    residuals several times as large. QR left vectors of a multiple eigenvalue up to
    7e-3 from orthogonal; a step of Newton and Schulz makes that 4e-5. TPUs have no QR,
    so no single program (as from `jax.export`) runs on both CUDA and TPU.
    """

    def by_qr(matrix):
        vectors, values = jax.lax.linalg.eigh(
            matrix, implementation=jax.lax.linalg.EighImplementation.QR
        )
        product = functools.partial(jnp.matmul, precision="highest")
        excess = product(vectors.T, vectors) - jnp.eye(len(values), dtype=vectors.dtype)
        return values, vectors - product(vectors, excess) / 2

    by_default = lambda matrix: tuple(jnp.linalg.eigh(matrix))
    return jax.lax.platform_dependent(matrix, cuda=by_qr, default=by_default)
