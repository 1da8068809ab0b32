"""The streaming tracker in factors against the dense one and dense float64 answers."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.linalg import basis, factors
from bulk_sgd.solvers import factored_oja, oja, subspace

SHAPES = {"bias": (4,), "kernel": (6, 5), "stack": (2, 4, 3)}
LIKE = {name: np.zeros(shape) for name, shape in SHAPES.items()}
SIZE, RANK = basis.size(LIKE), 4
MUON = optax.contrib.MuonDimensionNumbers
# Every matrix in factors, whatever they save.
AXES = {"bias": None, "kernel": MUON(), "stack": MUON(1, 2)}
SPECTRUM = np.concatenate([[10, 8, 6, 5], np.linspace(2, -1, SIZE - 4)])


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def solver_of(columns, factors, **options):
    if factors is None:
        return bulk_sgd.streaming(columns, **options)
    return bulk_sgd.streaming(columns, factors=factors, axes=AXES, **options)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _follow(columns, factors, rank, gain, matrices, noise, num_steps):
    """The last subspace and state, and the largest error of P² = P on the way."""
    solver = solver_of(columns, factors, gain=gain)
    dtype = basis.working_dtype(LIKE)
    like = jax.tree.map(lambda x: x.astype(dtype), LIKE)
    unravel = ravel_pytree(like)[1]

    def step(index, carry):
        known, error = carry
        key = jax.random.fold_in(jax.random.key(0), index)
        wiggle = noise * jax.random.normal(key, (SIZE, SIZE), dtype)
        matrix = matrices[index % len(matrices)].astype(dtype) + wiggle + wiggle.T
        multiply = functools.partial(jnp.matmul, matrix, precision="highest")
        matvec = lambda v: unravel(multiply(ravel_pytree(v)[0]))
        gradient = matvec(unravel(jax.random.normal(key, (SIZE,), dtype)))
        found, state = solver.solve(matvec, *known, gradient, key)
        probe = unravel(jax.random.normal(key, (SIZE,), dtype))
        once = found.project(probe)
        gap = basis.norm(basis.subtract(found.project(once), once))
        return (found, state), jnp.maximum(error, gap / basis.norm(probe))

    empty = subspace.empty(like, rank, solver.zeros)
    start = (empty, solver.init(like, rank)), jnp.zeros((), dtype)
    (found, state), error = jax.lax.fori_loop(0, num_steps, step, start)
    return found, state, error


def follow(columns, factors, matrices, *, gain=0.1, rank=RANK, noise=0.0, steps=200):
    """Shows 1, 3 or 9 matrices in turn, each with fresh symmetric noise."""
    shown = np.resize(np.stack(matrices), (9, SIZE, SIZE))
    return _follow(columns, factors, rank, gain, shown, noise, steps)


def unfolded(found):
    """The rows of a subspace of any form as a float64 matrix."""
    return helpers.rows(basis.map_in_turn(lambda row: row, found.eigenvectors))


def eigenvectors(count, weights):
    """Orthonormal rows, each matrix of them with singular values in these ratios.

    Returns them, and the same with the largest singular value alone. The left vectors
    of all rows are orthogonal, so that a product with a cut row lies along one row.
    """
    rng = np.random.default_rng(0)
    orthogonal = lambda n: np.linalg.qr(rng.standard_normal((n, n)))[0]
    whole, cut = {"bias": orthogonal(4)[:count]}, {}
    cut["bias"] = whole["bias"]
    for name, (number, m, n) in {"kernel": (1, 6, 5), "stack": (2, 4, 3)}.items():
        terms = np.empty((count, len(weights), number, m, n))
        for at in range(number):
            lefts = orthogonal(m)[: count * len(weights)]
            for i, left in enumerate(lefts.reshape(count, -1, m)):
                for q, right in enumerate(orthogonal(n)[: len(weights)]):
                    terms[i, q, at] = weights[q] * np.outer(left[q], right)
        shape = count, *SHAPES[name]
        whole[name] = terms.sum(1).reshape(shape)
        cut[name] = terms[:, 0].reshape(shape)
    length = np.linalg.norm(helpers.rows(whole)[0])
    return helpers.rows(whole) / length, helpers.rows(cut) / length


@pytest.mark.parametrize("columns", [1, *(slow(c) for c in (0, 2))])
def test_at_full_rank_it_is_the_dense_tracker(x64, columns):
    matrices = [helpers.symmetric(SPECTRUM, seed) for seed in range(3)]
    (found, state, _), (expected, dense, _) = (
        follow(columns, factors, matrices, noise=0.1, steps=60) for factors in (6, None)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    # 60 steps, each some roundings over the smallest singular value of a matrix.
    close(unfolded(found), unfolded(expected), atol=1e-9)
    close(found.eigenvalues, expected.eigenvalues, atol=1e-9)
    close(found.residuals, expected.residuals, atol=1e-9)
    close(state.quotients, dense.quotients, atol=1e-9)
    close(state.lost, 0, atol=1e-12)
    close(state.gram, np.eye(RANK), atol=1e-12)


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
    stored = found.eigenvectors.stored
    shapes = [x.shape[2:] for x in jax.tree.leaves((stored["kernel"], stored["stack"]))]
    assert shapes == [(6,), (5,), (2, 4), (2, 3)]
    assert stored["kernel"].left.shape[:2] == (RANK, factors)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_converges_to_eigenvectors_of_low_rank(columns):
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
def test_keeps_the_cut_of_eigenvectors_of_higher_rank(columns):
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


@pytest.mark.parametrize("width", [1, 2])
def test_what_rows_have_in_common_is_removed_once(x64, width):
    """Rows of a low rank may be far from orthogonal."""
    rows = np.ones((6, 9)) + np.random.default_rng(0).standard_normal((6, 9))
    window = oja.Window(2, width, 2, 0.1)
    mixing = factors.orthonormalizing(jnp.asarray(rows @ rows.T))
    found = factored_oja._inverse_outside(mixing, window)
    others = [*range(2), *range(2 + width, 6)]
    expected = np.zeros((6, 6))
    expected[np.ix_(others, others)] = np.linalg.inv(rows[others] @ rows[others].T)
    np.testing.assert_allclose(found, expected, atol=1e-9)


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
    run = lambda scale: _follow(1, 2, RANK, 0.1, scale * matrix, 0.0, 60)[0]
    scales = np.float32([1, 1e-30, 1e30])
    values = jax.vmap(run)(scales).eigenvalues
    np.testing.assert_allclose(values / scales[:, None], values[:1].repeat(3, 0), 1e-4)
