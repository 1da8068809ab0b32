"""Eigenvalues of blocks, traces and slices against dense float64 answers."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense, flat, operator, projector, rows, symmetric, top

import bulk_sgd
from bulk_sgd.curvature import blocks
from bulk_sgd.linalg import basis


@pytest.fixture(scope="module")
def point():
    with jax.enable_x64(True):
        loss_fn = helpers.cross_entropy
        return helpers.objective(helpers.mlp(), loss_fn, dtype=jnp.float64)


@pytest.mark.parametrize(
    "by",
    [*(pytest.param(x, marks=pytest.mark.slow) for x in (None, ".*")), r"^[a-z]+/(w)"],
)
def test_block_eigenpairs_equal_dense_blocks(x64, point, by):
    objective, params = point
    matvec = bulk_sgd.hessian(objective, params)
    matrix = dense(matvec, params)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    labels = np.repeat(np.array(blocks.names(params, by), object), sizes)
    found = bulk_sgd.block_eigenpairs(matvec, params, 3, 1e-9, by=by)
    assert list(found) == list(blocks.masks(params, by))
    for name, pairs in found.items():
        inside = labels == name
        rank = min(3, inside.sum())
        values, expected = top(matrix[inside][:, inside], rank)
        assert pairs.converged
        scale = np.abs(values).max()
        # Well below the 1e-5 that a layer's eigenvalues are asked for.
        np.testing.assert_allclose(pairs.eigenvalues, values, atol=1e-7 * scale)
        got = rows(pairs.eigenvectors)
        np.testing.assert_allclose(got @ got.T, np.eye(rank), atol=1e-7)
        next_value = top(matrix[inside][:, inside], min(rank + 1, inside.sum()))[0][-1]
        if values[-1] - next_value > 1e-3 * scale:  # a subspace of its own
            np.testing.assert_allclose(projector(got), expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("tol", [1e-3, 1e-9])
def test_repeated_eigenvalues_of_the_last_layer_are_all_seen(x64, tol):
    """Under squared error the block of a linear last layer is a Kronecker product."""
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((60, 30)))
    objective = bulk_sgd.Objective(
        lambda p, x: x @ p["w"], helpers.squared_error, inputs, jnp.ones((60, 4))
    )
    params = {"w": jnp.zeros((30, 4)), "b": jnp.zeros(1)}
    matvec = bulk_sgd.hessian(objective, params)
    exact = np.repeat(np.linalg.eigvalsh(2 * inputs.T @ inputs / 60)[::-1], 4)[:6]
    found = bulk_sgd.block_eigenpairs(matvec, params, 6, tol, by="w")["w"]
    np.testing.assert_allclose(found.eigenvalues, exact, rtol=tol)
    assert found.converged
    got = rows(found.eigenvectors)
    np.testing.assert_allclose(got @ got.T, np.eye(6), atol=10 * tol)


def test_a_negative_block_is_not_taken_for_zero(x64):
    # What is left over has one dimension, and is soon exhausted.
    matvec = operator(symmetric([-1.0, -2, -3, -4]))
    found = bulk_sgd.block_eigenpairs(matvec, jnp.zeros(4), 3, 1e-9)["params"]
    np.testing.assert_allclose(found.eigenvalues, [-1, -2, -3], rtol=1e-8)


@pytest.mark.slow
def test_no_key_is_used_twice():
    objective, params = helpers.objective(
        helpers.mlp(), helpers.squared_error, dtype=jnp.float32
    )
    with jax.debug_key_reuse(True):  # JAX raises a KeyReuseError
        found = bulk_sgd.block_eigenpairs(
            bulk_sgd.hessian(objective, params), params, key=jax.random.key(1)
        )
    assert found.keys() == params.keys()


@pytest.mark.parametrize("sketch", [0, 6])
def test_trace_and_its_error(x64, sketch):
    eigenvalues = np.append(np.linspace(-1, 1, 47), [30, -20, 50])
    matvec = operator(symmetric(eigenvalues))

    def estimate(key):
        return bulk_sgd.trace(matvec, jnp.zeros(50), 20, sketch, key=key)

    keys = jax.random.split(jax.random.key(0), 300)
    found = jax.jit(lambda keys: jax.lax.map(estimate, keys))(keys)
    values, errors = map(np.asarray, found)
    mean, spread = np.mean(values), np.std(values)
    assert abs(mean - eigenvalues.sum()) < 4 * spread / np.sqrt(300)
    stated = np.sqrt(np.mean(np.square(errors)))
    assert stated == pytest.approx(spread, rel=0.2)
    if sketch:  # the three large ones are out
        plain = np.sqrt(2 * np.sum(eigenvalues**2) / 20)
        assert stated < 0.1 * plain


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_trace_of_low_rank_is_exact(x64, dtype):
    """The sketch is wider than the range: what is left over must count for nothing."""
    for eigenvalues in (np.append(np.zeros(40), [3.0, 5.0]), np.zeros(42)):
        matvec = operator(symmetric(eigenvalues), dtype)
        like = jnp.zeros(42, dtype)
        found = bulk_sgd.trace(matvec, like, 5, 10)
        # Directions within sqrt(eps) of the largest are rounding to a sketch.
        slack = 100 * float(jnp.finfo(dtype).eps) ** 0.5
        assert found.value == pytest.approx(eigenvalues.sum(), abs=slack)


def test_slices_equal_direct_evaluation(x64, point):
    objective, params = point
    first, second = (
        basis.random_normal(jax.random.key(i), params, jnp.float64) for i in (1, 2)
    )
    offsets = jnp.linspace(-1, 1, 5), jnp.array([0.0, 0.3, 2.0])

    def direct(a, b):
        return objective(
            jax.tree.map(lambda x, u, v: x + a * u + b * v, params, first, second)
        )

    line = bulk_sgd.loss_slice(objective, params, [first], offsets[:1])
    expected = [direct(a, 0.0) for a in offsets[0]]
    np.testing.assert_allclose(line, expected, rtol=1e-12)
    plane = bulk_sgd.loss_slice(objective, params, [first, second], offsets)
    expected = [[direct(a, b) for b in offsets[1]] for a in offsets[0]]
    np.testing.assert_allclose(plane, expected, rtol=1e-12)
    assert plane.shape == (5, 3)


def test_slice_along_an_eigenvector_has_its_curvature(x64, point):
    objective, params = point
    matvec = bulk_sgd.hessian(objective, params)
    pairs = bulk_sgd.top_eigenpairs(matvec, params, 1, 1e-10, 200)
    step = 1e-3
    direction = basis.row(pairs.eigenvectors, 0)
    offsets = [jnp.array([-step, 0, step])]
    left, middle, right = bulk_sgd.loss_slice(objective, params, [direction], offsets)
    second = (left - 2 * middle + right) / step**2
    assert second == pytest.approx(float(pairs.eigenvalues[0]), rel=1e-4)
    slope = flat(jax.grad(objective)(params)) @ flat(direction)
    assert (right - left) / (2 * step) == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize(
    ("directions", "offsets", "message"),
    [
        ([], [], "offsets are 0 arrays for 0 directions"),
        ([{"x": 1.0}], [jnp.ones(2)] * 2, "offsets are 2 arrays for 1 directions"),
        (
            [{"x": jnp.ones(2)}],
            [jnp.ones((2, 1))],
            r"s\[0\] is of shape \(2, 1\); .* 1-di",
        ),
        ([{"x": jnp.ones(3)}], [jnp.ones(2)], r"directions\[0\] has the shapes"),
        ([{"y": jnp.ones(2)}], [jnp.ones(2)], r"directions\[0\] has the shapes"),
    ],
)
def test_slices_that_do_not_fit_are_refused(directions, offsets, message):
    with pytest.raises(ValueError, match=message):
        bulk_sgd.loss_slice(
            lambda p: jnp.sum(p["x"]), {"x": jnp.ones(2)}, directions, offsets
        )


def test_ranks_out_of_range_are_refused():
    matvec = operator(np.eye(3), jnp.float32)
    with pytest.raises(ValueError, match="rank is 0; it must be at least 1"):
        bulk_sgd.block_eigenpairs(matvec, jnp.ones(3), 0)
    with pytest.raises(ValueError, match="sketch is 4; it must be from 0 to 3"):
        bulk_sgd.trace(matvec, jnp.ones(3), sketch=4)
    with pytest.raises(ValueError, match="mask selects no parameter"):
        blocks.diagonal_block(matvec, jnp.ones(3), False)
