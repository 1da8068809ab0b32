"""Power steps on a basis in factors against dense ones and dense float64 answers."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factored_runs import (
    AXES,
    LIKE,
    RANK,
    SIZE,
    SPECTRUM,
    eigenvectors,
    follow,
    unfolded,
)
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.solvers import subspace

MATRIX = helpers.symmetric(SPECTRUM)
power = functools.partial(follow, "power")


def exact():
    """The dense Subspace of MATRIX, in float64."""
    values, vectors = np.linalg.eigh(MATRIX)
    unravel = ravel_pytree(jax.tree.map(jnp.asarray, LIKE))[1]
    return subspace.empty(LIKE, RANK)._replace(
        eigenvalues=jnp.asarray(values[::-1][:RANK]),
        eigenvectors=jax.vmap(unravel)(jnp.asarray(vectors[:, ::-1].T[:RANK])),
    )


def test_at_full_rank_it_is_the_dense_solver(x64):
    start = exact()
    matrices = [MATRIX + 0.02 * helpers.symmetric(SPECTRUM, s) for s in range(1, 4)]
    steps = {"matrices": matrices, "noise": 0.005, "steps": 20}
    (found, state, _), (expected, _, _) = (
        power(rank, start=begin, **steps)
        for rank, begin in ((6, start.factored(6, AXES)[0]), (None, start))
    )
    assert int(expected.num_matvecs) == RANK  # Lanczos would hide differences
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    # 20 steps, each some roundings over the smallest singular value of a matrix.
    close(unfolded(found), unfolded(expected), atol=1e-9)
    close(found.eigenvalues, expected.eigenvalues, atol=1e-9)
    # A root of a difference of squares.
    close(found.residuals, expected.residuals, atol=1e-7)
    close(state.lost, 0, atol=1e-12)


def test_from_nothing_it_finds_the_leading_eigenpairs(x64):
    found, state, _ = power(6, [MATRIX], steps=40)
    values, P = helpers.top(MATRIX, RANK)
    # 50 steps with the ratio 2 / 5.
    np.testing.assert_allclose(helpers.projector(unfolded(found)), P, atol=1e-9)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-9)
    np.testing.assert_allclose(found.residuals, 0, atol=1e-6)
    assert int(state.count) == 40
    first, *_ = power(6, [MATRIX], steps=1)
    assert int(first.num_matvecs) == 10 * RANK


def test_the_eigenvalues_are_those_of_largest_magnitude(x64):
    matrix = helpers.symmetric([10, 8, 6, *np.linspace(1, -2, SIZE - 4), -5])
    found, *_ = power(6, [matrix], steps=40)
    P = helpers.top(matrix, RANK, "magnitude")[1]
    np.testing.assert_allclose(helpers.projector(unfolded(found)), P, atol=1e-9)
    np.testing.assert_allclose(found.eigenvalues, [10, 8, 6, -5], rtol=1e-9)


def test_the_first_call_keeps_rows_that_one_eigenvalue_makes_alike():
    values = [50, 1.2, 1, 0.9]
    matrix = helpers.symmetric([*values, *np.linspace(0.5, -0.3, SIZE - 4)])
    found, *_ = power(6, [matrix], steps=1)
    assert int(found.kept) == RANK
    # Ten steps with the ratio 5 / 9, fewer for rows that were lost on the way.
    np.testing.assert_allclose(found.eigenvalues, values, rtol=0.05)


@pytest.mark.parametrize("rank", [1, 2])
def test_p_projects_onto_its_span_over_noisy_steps(rank):
    matrices = [helpers.symmetric(SPECTRUM, seed) for seed in range(3)]
    found, state, error = power(rank, matrices, noise=0.3, steps=100)
    # Some roundings of float32 times the condition of the cut rows.
    assert error < 1e-5
    rows = unfolded(found)
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-5)
    assert np.all((np.asarray(state.lost) > 0) & (np.asarray(state.lost) < 1))
    assert found.eigenvectors.frames["kernel"].vectors.shape == (rank, 6)


def test_keeps_the_cut_of_eigenvectors_with_more_directions():
    rows, cut = eigenvectors(2, (1.0, 0.5))
    matrix = rows.T @ (np.array([[10], [5]]) * rows)
    found, state, _ = power(1, [matrix], rank=2, steps=40)
    kept = np.sum(cut**2, axis=1)
    expected = helpers.projector(cut / np.sqrt(kept)[:, None])
    np.testing.assert_allclose(helpers.projector(unfolded(found)), expected, atol=1e-5)
    np.testing.assert_allclose(state.lost, 1 - kept, rtol=1e-4)
    np.testing.assert_allclose(found.eigenvalues, [10, 5] * kept, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_fewer_directions_than_rows_in_any_unit(scale):
    rows, _ = eigenvectors(2, (1.0,))
    matrix = scale * rows.T @ (np.array([[10], [5]]) * rows)
    found, _, error = power(1, [matrix], steps=40)
    assert float(error) < 1e-5
    overlap = np.sum((unfolded(found) @ rows.T) ** 2)
    assert overlap == pytest.approx(2, abs=1e-5)
    np.testing.assert_allclose(found.eigenvalues[:2], [10 * scale, 5 * scale], 1e-5)
    zero, *_ = power(1, [0 * matrix], steps=40)
    assert np.isfinite(unfolded(zero)).all()
    np.testing.assert_allclose(zero.eigenvalues, 0)


def test_value_that_is_not_finite_is_a_failed_solve():
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.power(factors=1, axes=AXES))
    unravel = ravel_pytree(jax.tree.map(jnp.float32, LIKE))[1]
    params = unravel(jnp.arange(1.0, SIZE + 1))

    @jax.jit
    def step(matrix, state):
        def loss(x):
            x = ravel_pytree(x)[0]
            return 0.5 * x @ matrix @ x

        return tx.update(params, state, params, value_fn=loss)[1]

    good = step(jnp.float32(MATRIX), tx.init(params))
    bad = step(jnp.float32(MATRIX) * jnp.nan, good)
    assert (int(good.failed_refreshes), int(bad.failed_refreshes)) == (0, 1)
    same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    same(bad.subspace, good.subspace)
    same(bad.solver_state, good.solver_state)


@pytest.mark.parametrize(
    ("argument", "value", "plain"),
    [
        ("along", "update", "'basis'"),
        ("tol", 0.1, "0.5"),
        ("max_matvecs", 30, "None"),
        ("solve_every", 9, "200"),
    ],
)
def test_what_has_no_meaning_in_factors_is_refused(argument, value, plain):
    with pytest.raises(ValueError, match=f"{argument} is .*; with factors .* {plain}"):
        bulk_sgd.power(**{argument: value}, factors=1)
