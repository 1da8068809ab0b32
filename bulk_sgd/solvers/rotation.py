"""Rotations of a basis that bring it closer to the eigenvectors of its quotients.

The *quotients* of vectors V = [v_1 … v_k] are the symmetric matrix Vᵀ H V, with the
Rayleigh quotients on its diagonal. The *noise* of a vector is a variance that mixes
like the square of the vector. Rotations here take rows v_i, the `(k, k)` quotients and
the `(k, n)` kinds of noise of the whole basis, and return all three rotated.
"""

import jax
import jax.numpy as jnp

from bulk_sgd.linalg import basis


def diagonalize(rows, quotients, noise, start):
    """Rayleigh-Ritz within the `rows` from index `start`: they become Ritz vectors."""
    width = basis.num_rows(rows)
    own = jax.lax.dynamic_slice(quotients, (start, start), (width, width))
    _, vectors = jnp.linalg.eigh(own)
    turn = vectors[:, ::-1].T
    identity = jnp.eye(len(quotients), dtype=quotients.dtype)
    rotation = jax.lax.dynamic_update_slice(identity, turn, (start, start))
    return basis.combine(turn, rows), *_conjugate(rotation, quotients, noise)


def partner(quotients, index, allowed):
    """Which of the `allowed` rows needs a rotation with row `index` most.

    It is the one with the largest sum of the off-diagonal quotient and the amount by
    which the two are in the wrong order.
    """
    rows = jnp.arange(len(quotients))
    values = jnp.diag(quotients)
    gap = jnp.where(rows > index, values - values[index], values[index] - values)
    need = jnp.abs(quotients[index]) + jnp.maximum(gap, 0)
    return jnp.argmax(jnp.where(allowed, need, -1)).astype(jnp.int32)


def jacobi(row, other, quotients, noise, index, partner):
    """One Jacobi rotation, which makes the mutual quotient of two rows zero.

    The vectors `row` at `index` and `other` at `partner` turn so that the first one in
    the basis gets the larger quotient.
    """
    forward = index < partner
    first, second = jnp.minimum(index, partner), jnp.maximum(index, partner)
    angle = 0.5 * jnp.arctan2(
        2 * quotients[first, second],
        quotients[first, first] - quotients[second, second],
    )
    # Rows trade places exactly: a cosine of rounding would fill a row of zeros.
    places = (quotients[first, second] == 0) & (angle > 0)
    c = jnp.where(places, 0, jnp.cos(angle))
    s = jnp.where(forward, 1, -1) * jnp.sin(angle)
    turned = jax.tree.map(lambda x, y: c * x + s * y, row, other)
    rest = jax.tree.map(lambda x, y: c * y - s * x, row, other)
    rows = jnp.arange(len(quotients))
    one, two = rows == index, rows == partner
    pair = s * jnp.outer(one, two)
    rotation = jnp.diag(jnp.where(one | two, c, 1)) + pair - pair.T
    return turned, rest, *_conjugate(rotation, quotients, noise)


def _conjugate(rotation, quotients, noise):
    return rotation @ quotients @ rotation.T, rotation**2 @ noise
