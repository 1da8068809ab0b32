"""Frames that turn towards new rows, against singular value decompositions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bulk_sgd.linalg import basis, frames
from bulk_sgd.linalg.matrices import Sides

K, Q = 3, 2
# By name the shape, the sides, and how many matrices of how many rows these are.
LAYOUTS = {
    "kernel": ((9, 5), Sides((0,), (1,)), (1, 9)),
    "turned": ((5, 9), Sides((1,), (0,)), (1, 9)),
    "conv": ((2, 3, 4, 5), Sides((0, 1, 2), (3,)), (1, 24)),
    "stack": ((3, 7, 5), Sides((1,), (2,)), (3, 7)),
}


def case(name, seed):
    """A frame, and random coordinates of `K` rows in it, in float64."""
    shape, sides, (number, m) = LAYOUTS[name]
    rng = np.random.default_rng(seed)
    directions = jnp.linalg.qr(jnp.asarray(rng.standard_normal((number, m, Q))))[0]
    frame = frames.of(directions, shape, sides, Q, jax.random.key(0))
    like = jax.eval_shape(frame.compress, jax.ShapeDtypeStruct(shape, jnp.float64))
    return frame, jnp.asarray(rng.standard_normal((K, *like.shape)))


def matrices(name, leaves):
    """Leaves `(k, *shape)` as NumPy's `(number, m, k·n)`."""
    found = np.moveaxis(np.asarray(LAYOUTS[name][1].matrices(leaves)), 0, 2)
    return found.reshape(*found.shape[:2], -1)


def projector(name, frame):
    """The matrix of lift ∘ compress, by rows."""
    size = np.prod(LAYOUTS[name][0])
    identity = jnp.eye(size).reshape(size, *LAYOUTS[name][0])
    found = jax.vmap(lambda leaf: frame.lift(frame.compress(leaf)))(identity)
    return np.asarray(found).reshape(size, size)


@pytest.mark.parametrize("name", LAYOUTS)
def test_coordinates_keep_inner_products_and_leave_out_what_is_outside(name, x64):
    frame, rows = case(name, 0)
    lifted = jax.vmap(frame.lift)(rows)
    assert lifted.shape == (K, *LAYOUTS[name][0])
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    close(jax.vmap(frame.compress)(lifted), rows)
    close(basis.gram(lifted, lifted), basis.gram(rows, rows))
    P = projector(name, frame)
    close(P, P.T)
    close(P @ P, P)
    close(np.trace(P), rows[0].size)


@pytest.mark.parametrize("name", LAYOUTS)
def test_frames_turn_to_the_best_directions(name, x64):
    """Power steps towards the same rows end at their singular vectors."""
    frame, rows = case(name, 0)
    held, rows = [frame], [jnp.zeros_like(rows)]
    # Rows with two directions of their own, and a little of all others.
    other, coordinates = case(name, 1)
    truth = jax.vmap(other.lift)(coordinates)
    truth += 0.03 * np.random.default_rng(2).standard_normal(truth.shape)
    truth /= np.linalg.norm(truth.reshape(K, -1), axis=1).reshape(
        K, *(1,) * (truth.ndim - 1)
    )
    values = np.linalg.svd(matrices(name, truth), compute_uv=False)

    @jax.jit
    def step(held, rows, index):
        product = [jax.lax.dynamic_slice_in_dim(truth, index, 1)]
        own = basis.map_rows(functools.partial(frames.compress, held), product)
        rows = basis.put(rows, index, own, jnp.asarray(True))
        turned = frames.turn(held, rows, product, own, jnp.ones(1))
        return turned, frames.translate(held, turned, rows)

    for index in range(40 * K):
        held, rows = step(held, rows, index % K)
    inside = jax.vmap(held[0].compress)(truth)
    most = np.sum(values[:, :Q] ** 2)
    assert np.sum(jax.vmap(frame.compress)(truth) ** 2) < 0.8 * most
    # Rows that the last turns did not replace have only turned with the frames.
    np.testing.assert_allclose(np.sum(inside**2), most, rtol=1e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_turn_is_as_good_as_an_svd_to_first_order(name, x64):
    frame, rows = case(name, 0)
    noise = np.random.default_rng(1).standard_normal((1, *LAYOUTS[name][0]))
    noise -= jax.vmap(lambda leaf: frame.lift(frame.compress(leaf)))(noise)
    lifted = jax.vmap(frame.lift)(rows)
    product = lifted[:1] + 0.05 * noise
    (turned,) = frames.turn([frame], [rows], [product], [rows[:1]], jnp.ones(1))
    whole = jnp.concatenate([product, lifted[1:]])
    values = np.linalg.svd(matrices(name, whole), compute_uv=False)
    missed = lambda frame: (
        np.sum(values[:, :Q] ** 2) - np.sum(jax.vmap(frame.compress)(whole) ** 2)
    )
    # A step of half the length would miss a quarter of it.
    assert 0 <= missed(turned) < 0.05 * missed(frame)


@pytest.mark.parametrize("energy", [0.0, 1e-4, 1.0])
def test_frames_stay_orthonormal_whatever_they_turn_to(energy):
    """All directions turn to the same one, from frames that hold almost nothing."""
    shape, sides, _ = LAYOUTS["kernel"]
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    frame = frames.start(leaf, sides, 4, jax.random.key(0))
    rows = jnp.full((K, 4, 5), energy)
    product = jnp.outer(jnp.arange(9.0), jnp.arange(5.0))[None]
    for scale in (0.0, 1e-6, 1.0, 1e6):
        scales = jnp.array([scale])
        (turned,) = frames.turn([frame], [rows], [product], [1 + rows[:1]], scales)
        gram = turned.inner(turned.vectors, turned.vectors)
        np.testing.assert_allclose(gram, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("unit", [1e-44, 1e-38, 1e-30, 1e-20])
def test_energies_near_the_end_of_the_range_leave_a_frame_finite(unit):
    shape, sides, _ = LAYOUTS["kernel"]
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    frame = frames.start(leaf, sides, 4, jax.random.key(0))
    rows = jnp.full((K, 4, 5), unit**0.5, jnp.float32)
    product = jnp.outer(jnp.arange(9.0), jnp.arange(5.0))[None]
    for scale in (0.0, 1.0):
        made = frames.turn([frame], [rows], [product], [rows[:1]], jnp.array([scale]))
        gram = made[0].inner(made[0].vectors, made[0].vectors)
        np.testing.assert_allclose(gram, np.eye(4), atol=1e-6)


def test_directions_that_were_not_given_are_drawn():
    shape, sides, _ = LAYOUTS["kernel"]
    given = jnp.eye(9)[None, :, :1]
    frame = frames.of(given, shape, sides, 4, jax.random.key(0))
    gram = frame.inner(frame.vectors, frame.vectors)
    np.testing.assert_allclose(gram, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(abs(frame.vectors[0]), np.eye(9)[0], atol=1e-6)


def test_orthonormalizing_drops_rows_that_depend_on_those_before(x64):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 5, 8))
    rows[:, 3] = rows[:, 0] - 2 * rows[:, 2]
    W = frames.orthonormalizing(jnp.asarray(rows @ rows.swapaxes(1, 2)))
    expected = np.broadcast_to(np.diag([1, 1, 1, 0, 1]), (2, 5, 5))
    made = W @ rows
    np.testing.assert_allclose(made @ made.swapaxes(1, 2), expected, atol=1e-12)
    np.testing.assert_allclose(np.triu(W, 1), 0)
