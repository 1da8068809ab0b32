"""The streaming tracker in factors against the dense one and dense float64 answers."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factored_runs import (
    AXES,
    RANK,
    SIZE,
    SPECTRUM,
    eigenvectors,
    follow,
    random_subspace,
    run,
    unfolded,
)

from bulk_sgd.linalg import basis
from bulk_sgd.solvers import oja


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("columns", [1, *(slow(c) for c in (0, 2))])
def test_at_full_rank_it_is_the_dense_tracker(x64, columns):
    matrices = [helpers.symmetric(SPECTRUM, seed) for seed in range(3)]
    # A basis to start with, since a missing vector is drawn by its coordinates.
    start = random_subspace()
    (found, state, _), (expected, dense, _) = (
        follow(columns, factors, matrices, noise=0.1, steps=60, start=begin)
        for factors, begin in ((6, start.factored(6, AXES)[0]), (None, start))
    )
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    # 60 steps, each some roundings over the smallest singular value of a matrix.
    close(unfolded(found), unfolded(expected), atol=1e-9)
    close(found.eigenvalues, expected.eigenvalues, atol=1e-9)
    close(found.residuals, expected.residuals, atol=1e-9)
    close(state.quotients, dense.quotients, atol=1e-9)
    close(state.lost, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("columns", "factors"), [(1, 2), slow(0, 1), slow(1, 1), slow(2, 1)]
)
def test_p_projects_onto_its_span_over_many_noisy_steps(columns, factors):
    matrices = [helpers.symmetric(SPECTRUM)]
    found, state, error = follow(columns, factors, matrices, noise=0.3, steps=1000)
    assert float(error) < 1e-5
    rows = unfolded(found)
    # Some roundings of float32 times the condition of the cut rows.
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-5)
    assert np.all((np.asarray(state.lost) > 0) & (np.asarray(state.lost) < 1))
    frames, held = found.eigenvectors.frames, found.eigenvectors.coordinates
    assert frames["bias"] is None
    assert frames["kernel"].vectors.shape == (factors, 6)
    assert frames["stack"].vectors.shape == (factors, 2, 3)
    shapes = {name: leaf.shape[1:] for name, leaf in held.items()}
    assert shapes == {"bias": (4,), "kernel": (factors, 5), "stack": (factors, 2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("columns", [0, 1, 2])
def test_converges_to_eigenvectors_that_share_a_direction(columns):
    rows, _ = eigenvectors(RANK, (1.0,))
    values = np.array([10, 8, 6, 5])
    matrix = rows.T @ (values[:, None] * rows)
    matrix += 2 * (np.eye(SIZE) - rows.T @ rows)
    steps = 40 * (RANK // columns if columns else 1)
    found, state, _ = follow(columns, 1, [matrix], gain=1.0, steps=2 * steps)
    P = helpers.projector(unfolded(found))
    # Power iteration with the ratio 2 / 5, and rounding of float32.
    np.testing.assert_allclose(P, helpers.projector(rows), atol=1e-5)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-5)
    # A vector keeps a hundredth of its product in the tracker's first sweeps alone.
    np.testing.assert_allclose(state.lost, 0, atol=1e-4)
    assert found.converged


@pytest.mark.parametrize("columns", [0, 1])
def test_keeps_the_cut_of_eigenvectors_with_more_directions(columns):
    rows, cut = eigenvectors(2, (1.0, 0.5))
    matrix = rows.T @ (np.array([[10], [5]]) * rows)
    found, state, _ = follow(columns, 1, [matrix], gain=1.0, rank=2, steps=160)
    kept = np.sum(cut**2, axis=1)
    assert 0.1 < 1 - kept[0] < 0.2
    expected = helpers.projector(cut / np.sqrt(kept)[:, None])
    P = helpers.projector(unfolded(found))
    np.testing.assert_allclose(P, expected, atol=1e-5)
    # A vector keeps a hundredth of itself beside a product, which was cut before.
    np.testing.assert_allclose(state.lost, 1 - kept, rtol=0.05)
    np.testing.assert_allclose(found.eigenvalues, [10, 5] * kept, rtol=1e-4)
    # With a gain of 1, what is outside of the last products: ‖H v − P H v‖.
    outside = [10, 5] * np.sqrt(kept * (1 - kept))
    np.testing.assert_allclose(found.residuals, outside, rtol=0.05)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_fewer_directions_than_rows(columns):
    """What is left of a product is rounding then, and must not pass for a vector."""
    rows, _ = eigenvectors(2, (1.0,))
    matrix = rows.T @ (np.array([[10], [5]]) * rows)
    found, _, error = follow(columns, 1, [matrix])
    assert float(error) < 1e-5
    overlap = np.sum((unfolded(found) @ rows.T) ** 2)
    assert overlap == pytest.approx(2, abs=1e-3)
    zero, *_ = follow(columns, 1, [0 * matrix])
    assert np.isfinite(unfolded(zero)).all()
    np.testing.assert_allclose(zero.eigenvalues, 0)


def test_value_that_is_not_finite_leaves_everything_as_it_was():
    matrix = helpers.symmetric(SPECTRUM)
    matrices = [matrix] * 8 + [np.full_like(matrix, np.nan)]
    (found, state, _), (after, later, _), (again, _, _) = (
        follow(1, 2, matrices, steps=steps) for steps in (8, 9, 10)
    )
    assert not after.converged
    assert int(later.count) == 9
    jax.tree.map(np.testing.assert_array_equal, after.eigenvectors, found.eigenvectors)
    jax.tree.map(np.testing.assert_array_equal, later[1:], state[1:])
    assert again.converged


@pytest.mark.parametrize("seed", range(4))
def test_fewer_outliers_than_rows_leave_rows_apart(seed):
    # Nearly parallel rows must not be taken for orthogonal ones and become one row.
    bulk = 0.1 * np.random.default_rng(seed).standard_normal(SIZE - 1)
    matrix = helpers.symmetric([10.0, *bulk], seed)
    found, _, error = follow(1, 2, [matrix], steps=400)
    assert int(found.kept) == RANK
    assert error < 1e-5
    largest = np.max(found.eigenvalues)
    # The cut vectors are no eigenvectors: a quotient is at most the largest eigenvalue.
    assert 5 < largest < 10.001


@pytest.mark.slow
def test_lanes_of_other_units_are_as_alone():
    matrix = np.resize(helpers.symmetric(SPECTRUM), (9, SIZE, SIZE)).astype(np.float32)
    alone = lambda scale: run(1, 2, RANK, 0.1, scale * matrix, 0.0, 60)[0]
    scales = np.float32([1, 1e-30, 1e30])
    values = jax.vmap(alone)(scales).eigenvalues
    np.testing.assert_allclose(values / scales[:, None], values[:1].repeat(3, 0), 1e-4)


def test_every_quotient_of_the_identity_is_one_after_a_sweep():
    """Vectors that are drawn have length one, in whatever form they are kept."""
    for columns, factors in ((1, 2), (0, 6)):
        found, _, error = follow(columns, factors, [np.eye(SIZE)], steps=RANK)
        np.testing.assert_allclose(found.eigenvalues, 1, rtol=1e-5)
        assert float(error) < 1e-5


def test_a_matrix_without_curvature_does_no_harm():
    matrix = helpers.symmetric(SPECTRUM)
    matrix[4:34], matrix[:, 4:34] = 0, 0  # the kernel
    found, _, error = follow(1, 2, [matrix], gain=1.0, steps=400)
    assert found.converged
    assert float(error) < 1e-5
    # What was drawn is gone: by a factor of 0.01 in each sweep.
    assert np.abs(basis.dense(found.eigenvectors)["kernel"]).max() < 1e-6
    values = np.linalg.eigvalsh(matrix)[-1]
    assert 0.5 * values < found.eigenvalues[0] < values * (1 + 1e-5)


def test_lost_follows_a_vector_to_its_place():
    rows, lost = jnp.eye(2, 3), jnp.array([0.1, 0.4])
    quotients = jnp.diag(jnp.array([5.0, 10.0]))  # in the wrong order
    window = oja.Window(jnp.int32(0), 1, jnp.int32(0), jnp.float32(0.1))
    known = quotients, jnp.zeros(2), jnp.asarray(True)
    found = oja.move(5 * rows[:1], rows, rows[:1], window, *known, beside=lost)
    np.testing.assert_allclose(abs(found.rows[0]), rows[1], atol=1e-6)
    np.testing.assert_allclose(found.beside, lost[::-1], rtol=1e-6)
