"""The streaming tracker against dense float64 answers."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streaming_runs import MATRIX, MAX_STEPS, RANK, SIZE, SPECTRUM, run

import bulk_sgd
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import subspace


def projector_error(found, rank=RANK, matrix=MATRIX):
    rows = helpers.rows(found.eigenvectors)
    _, vectors = np.linalg.eigh(matrix)
    exact = vectors[:, ::-1][:, :rank]
    return np.linalg.norm(rows.T @ rows - exact @ exact.T, 2)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_converges_to_the_top_space_of_a_constant_matrix(columns):
    # Power iteration with gain 1: the ratio 2 / 5 of the gap to the power of the
    # sweeps, 40 of them, is far below rounding.
    sweeps = 40 * RANK // (columns or RANK)
    found, _, path = run(sweeps, columns=columns, gain=1.0)
    assert projector_error(found) < 1e-5
    np.testing.assert_allclose(found.eigenvalues, SPECTRUM[:RANK], rtol=2e-5)
    rows = helpers.rows(found.eigenvectors)
    # Rows are the eigenvectors, in order, not just some basis of their span.
    quotients = rows @ MATRIX @ rows.T
    np.testing.assert_allclose(quotients, np.diag(SPECTRUM[:RANK]), atol=1e-3)
    assert set(np.asarray(path.num_matvecs)) == {columns or RANK}
    assert np.all(path.converged)


@pytest.mark.parametrize(
    ("columns", "gain", "bound"),
    [(0, 0.1, 8), (1, 0.1, 8), (2, 0.1, 8), (1, 0.2, 6), (1, 0.4, 3)],
)
def test_follows_the_largest_eigenvalues_and_not_the_most_negative(
    columns, gain, bound
):
    lowest = -bound * 5  # in λ_k; the docstring has the bounds
    values = [10, 8, 6, 5, *np.linspace(2, -1, SIZE - 6), lowest / 2, lowest]
    matrix = helpers.symmetric(values)
    sweeps = 150 * RANK // (columns or RANK)
    found, _, _ = run(sweeps, [matrix], columns=columns, gain=gain)
    assert projector_error(found, matrix=matrix) < 1e-3
    np.testing.assert_allclose(found.eigenvalues, values[:RANK], rtol=1e-4)


@pytest.mark.parametrize("columns", [0, 1])
def test_rows_stay_orthonormal_over_many_noisy_steps(columns):
    found, _, _ = run(1000, columns=columns, noise=0.5)
    rows = helpers.rows(found.eigenvectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=2e-5)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_rows_stay_orthonormal_with_negative_quotients(columns):
    matrix = helpers.symmetric([5, *-np.linspace(0.5, 3, SIZE - 1)])
    *_, path = run(1000, [matrix], columns=columns)
    assert np.min(path.eigenvalues[-1]) < 0
    for step in range(100, 1000, 100):
        rows = helpers.rows(basis.row(path.eigenvectors, step))
        np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-5)


@pytest.mark.slow
def test_smaller_gain_averages_the_noise():
    # Stationary error of an average with weight ρ: √(ρ / (2 − ρ)) of a sample's.
    errors = {}
    for gain in (1.0, 0.2, 0.02):
        found = [
            run(400, columns=0, gain=gain, noise=0.3, seed=seed)[0] for seed in range(4)
        ]
        errors[gain] = np.mean([projector_error(each) for each in found])
    assert errors[0.2] < 0.6 * errors[1.0]
    assert errors[0.02] < 0.6 * errors[0.2]


def test_residuals_are_standard_errors_of_the_averaged_products():
    ratios = []
    for seed in range(6):
        found, _, _ = run(300, columns=0, noise=0.3, seed=seed)
        rows = helpers.rows(found.eigenvectors)
        values = np.asarray(found.eigenvalues, np.float64)
        true = np.linalg.norm(rows @ MATRIX - values[:, None] * rows, axis=1)
        ratios.append(true / np.asarray(found.residuals))
    # (H − λ) v also shrinks what is averaged, by the gap over λ: below 1, not far.
    assert 0.4 < np.mean(ratios) < 1.3


@pytest.mark.parametrize(
    ("columns", "gain", "sweeps"),
    [(0, 0.1, 10), (1, 0.4, 6), (1, 0.2, 10), (0, 1.0, 6)],
)
def test_every_acts_on_one_call_in_so_many_after_some_sweeps(columns, gain, sweeps):
    width = columns or RANK
    early = sweeps * RANK // width
    rare, _, path = run(early + 7, columns=columns, every=3, gain=gain)
    assert path.num_matvecs.tolist() == [width] * early + [width, 0, 0] * 2 + [width]
    steady, _, _ = run(early + 3, columns=columns, gain=gain)
    rows = [helpers.rows(found.eigenvectors) for found in (rare, steady)]
    np.testing.assert_allclose(*rows, atol=1e-5)  # two programs round differently
    # Between its acts nothing moves.
    rows = [helpers.rows(basis.row(path.eigenvectors, early + i)) for i in (3, 4, 5)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize("columns", [0, 1, 2])
@pytest.mark.parametrize("directions", [1, 2])
def test_fewer_directions_than_rows(columns, directions):
    """What is left of a product is rounding then, and must not pass for a vector."""
    matrix = helpers.symmetric([10.0, 5.0][:directions] + [0.0] * (SIZE - directions))
    found, _, path = run(200, [matrix], columns=columns)
    assert path.converged.all()
    for index in range(200):
        rows = helpers.rows(jax.tree.map(lambda x, i=index: x[i], path.eigenvectors))
        rows = rows[np.linalg.norm(rows, axis=1) > 0]
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-5)
    values, exact = helpers.top(matrix, directions)
    np.testing.assert_allclose(found.eigenvalues[:directions], values, rtol=0.1)
    assert np.linalg.norm(exact @ rows.T) ** 2 == pytest.approx(directions, abs=1e-3)


@pytest.mark.parametrize("columns", [0, 1, 2])
def test_batches_of_one_example_add_up(columns):
    """Each has a Hessian of rank one; the average has not."""
    draws = np.random.default_rng(0).standard_normal((40, SIZE))
    inputs = draws * np.sqrt(SPECTRUM + 1)
    examples = [np.outer(x, x) for x in inputs]
    found, _, path = run(MAX_STEPS, examples, columns=columns)
    assert path.converged.all()
    rows = helpers.rows(found.eigenvectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-5)
    _, exact = helpers.top(inputs.T @ inputs / 40, RANK)
    # A single subspace scatters with its last examples, so the mean over steps counts:
    # 2.15 to 2.6, whatever the noise in the first rows; 1.3 to 1.4 with a gain of 1.
    steps = range(200, MAX_STEPS, 10)
    after = [helpers.rows(basis.row(path.eigenvectors, step)) for step in steps]
    overlaps = [np.linalg.norm(exact @ rows.T) ** 2 for rows in after]
    assert np.mean(overlaps) > 0.5 * RANK


def test_follows_a_matrix_that_turns():
    # After the spectrum is exchanged, the tracker leaves the old space for the new.
    other = helpers.symmetric(SPECTRUM, seed=7)
    order = np.arange(MAX_STEPS) >= 50
    found, _, path = run(250, [MATRIX, other], order, columns=0)
    assert projector_error(jax.tree.map(lambda x: x[49], path)) < 0.01
    assert projector_error(found, matrix=other) < 0.01


def test_value_that_is_not_finite_leaves_everything_as_it_was():
    matrices, order = [MATRIX, np.full_like(MATRIX, np.nan)], np.zeros(MAX_STEPS)
    order[2 * RANK] = 1
    (found, state, _), (after, later, _), (again, _, _) = (
        run(steps, matrices, order) for steps in range(2 * RANK, 2 * RANK + 3)
    )
    assert not after.converged
    jax.tree.map(np.testing.assert_array_equal, after.eigenvectors, found.eigenvectors)
    np.testing.assert_array_equal(after.eigenvalues, found.eigenvalues)
    np.testing.assert_array_equal(later.quotients, state.quotients)
    assert again.converged


@pytest.mark.parametrize("refresh_every", [1, 2])
def test_failed_step_leaves_what_is_known_about_the_last_accepted_one(refresh_every):
    tx = bulk_sgd.project_bulk(
        2, solver=bulk_sgd.streaming(2), refresh_every=refresh_every
    )
    loss = lambda w, poison: 0.5 * jnp.sum(jnp.arange(1.0, 6.0) * w**2) * poison
    weights = jnp.ones(5)

    @jax.jit
    def step(state, poison):
        return tx.update(weights, state, weights, value_fn=loss, poison=poison)[1]

    state = tx.init(weights)
    for _ in range(4):
        state = step(state, 1.0)
    spent = int(state.total_matvecs)
    bad = step(state, jnp.nan)
    assert (int(bad.failed_refreshes), int(bad.total_matvecs)) == (1, spent + 2)
    for kept, old in zip(bad.subspace, state.subspace, strict=True):
        np.testing.assert_array_equal(kept, old)
    assert bool(bad.subspace.converged)
    assert int(bad.solver_state.count) == int(state.solver_state.count) + 1


def test_transform_tracks_mini_batches_of_a_regression():
    # Linear regression: H is the second moment of the inputs, whatever the batch.
    scales = np.concatenate([[6, 5, 4], np.ones(9)])
    inputs = np.random.default_rng(0).standard_normal((512, 12)) * scales
    inputs = jnp.asarray(inputs, jnp.float32)
    loss = lambda w, x: 0.5 * jnp.mean((x @ w - jnp.sum(x, axis=1)) ** 2)
    tx = bulk_sgd.project_bulk(rank=3, solver=bulk_sgd.streaming())
    weights = jnp.zeros(12)
    state = tx.init(weights)

    @jax.jit
    def step(state, key):
        batch = inputs[jax.random.randint(key, (64,), 0, 512)]
        value_fn = lambda w: loss(w, batch)
        return tx.update(jax.grad(value_fn)(weights), state, weights, value_fn=value_fn)

    for index in range(150):
        updates, state = step(state, jax.random.key(index))
    exact = np.linalg.eigh(np.asarray(inputs.T @ inputs, np.float64) / 512)
    error = projector_error(state.subspace, 3, np.asarray(inputs.T @ inputs) / 512)
    assert error < 0.1
    np.testing.assert_allclose(
        state.subspace.eigenvalues, exact.eigenvalues[::-1][:3], rtol=0.15
    )
    assert int(optax.tree_utils.tree_get(state, "total_matvecs")) == 150
    assert int(state.failed_refreshes) == 0
    inside = helpers.rows(state.subspace.eigenvectors) @ helpers.flat(updates)
    assert np.linalg.norm(inside) < 1e-4 * np.linalg.norm(helpers.flat(updates))


def test_basis_is_written_in_place():
    # Guards the speed of a step: the compiled loop holds no copy of the basis.
    params = (jnp.ones((60, 70)), jnp.ones(30))
    loss = lambda p: jnp.sum(p[0] ** 2) + jnp.sum(p[1] ** 4)
    tx = bulk_sgd.bulk_sgd(0.1, rank=RANK, solver=bulk_sgd.streaming())

    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    scan = jax.jit(
        lambda carry: jax.lax.scan(step, carry, length=5)[0], donate_argnums=0
    )
    program = scan.lower((params, tx.init(params))).compile().as_text()
    assert f"f32[{RANK},60,70]" in program
    copies = [
        line for line in program.splitlines() if f"= f32[{RANK},60,70]" in line
        and " copy(" in line
    ]  # fmt: skip
    assert not copies


@pytest.mark.parametrize("columns", [1, 2])
def test_rows_that_come_and_go_stay_orthonormal(columns):
    """Batches see one direction in seven, so that blocks are found in part."""
    solver, like = bulk_sgd.streaming(columns), jnp.zeros(8)

    def follow(key):
        def step(carry, key):
            seen, drawn = jax.random.split(key)
            sharpness = jnp.where(
                jax.random.bernoulli(seen, 0.15, (8,)), jnp.arange(8.0, 0, -1), 0
            )
            update = jnp.where(sharpness > 0, jax.random.normal(drawn, (8,)), 0)
            carry = solver.solve(lambda v: sharpness * v, *carry, update, key)
            return carry, carry[0]

        start = subspace.empty(like, RANK), solver.init(like, RANK)
        return jax.lax.scan(step, start, jax.random.split(key, 40))[1]

    found = jax.jit(jax.vmap(follow))(jax.random.split(jax.random.key(0), 200))
    rows = np.asarray(found.eigenvectors, np.float64)
    lengths = np.linalg.norm(rows, axis=-1)
    if columns == 2:  # some blocks with one row of two
        pairs = (lengths > 0).reshape(*lengths.shape[:2], -1, 2)
        assert np.any(pairs[..., 0] != pairs[..., 1])
    products = rows @ rows.swapaxes(-1, -2)
    wanted = np.eye(RANK) * (lengths > 0)[..., None]
    # A vector keeps a hundredth of its product: 100 roundings of float32.
    np.testing.assert_allclose(products, wanted, atol=1.2e-5)
    assert np.mean(found.converged) == 1


@pytest.mark.parametrize("columns", [1, 2])
def test_rows_of_zeros_and_others_change_places_exactly(columns):
    sharpness = np.diag([10.0, 5, 3, 1, 0.5, *np.zeros(SIZE - 5)])
    # Every second batch has no curvature.
    found, _, path = run(40, [0 * sharpness, sharpness], columns=columns)
    assert path.converged.all()
    assert int(found.kept) > 0
