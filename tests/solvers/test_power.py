"""Power steps and drift probes against dense float64 answers."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.solvers import subspace
from bulk_sgd.solvers.power import probe

SIZE, RANK = 40, 4
SPECTRUM = np.concatenate([[10, 8, 6, 5], np.linspace(2, -1, SIZE - 4)])
MATRIX = helpers.symmetric(SPECTRUM)
# The same spectrum in a frame that is off by some 0.1.
SKEW = np.random.default_rng(1).standard_normal((SIZE, SIZE))
SKEW = 0.005 * (SKEW - SKEW.T)
TURN = np.linalg.solve(np.eye(SIZE) - SKEW, np.eye(SIZE) + SKEW)  # Cayley
TURNED = TURN @ MATRIX @ TURN.T
UPDATE = np.random.default_rng(2).standard_normal(SIZE) @ MATRIX
OTHER = helpers.symmetric(SPECTRUM, seed=7)


def shaped(flat):
    """A vector of the test's pytree: a matrix, a scalar and a vector."""
    flat = jnp.asarray(flat, jnp.float32)
    return {"a": flat[:20].reshape(4, 5), "b": flat[20], "c": flat[21:]}


def matvec(matrix):
    dense = jnp.asarray(matrix, jnp.float32)

    def apply(vector):
        return shaped(dense @ jnp.concatenate([x.ravel() for x in vector.values()]))

    return apply


def exact(matrix=MATRIX, rank=RANK):
    """The Subspace of a dense eigendecomposition."""
    values, vectors = np.linalg.eigh(matrix)
    rows = jax.vmap(shaped)(jnp.asarray(vectors[:, ::-1].T[:rank], jnp.float32))
    values = jnp.asarray(values[::-1][:rank], jnp.float32)
    return subspace.empty(shaped(UPDATE), rank)._replace(
        eigenvalues=values, eigenvectors=rows
    )


@functools.partial(jax.jit, static_argnames="solver")
def _call(solver, matrix, before, update):
    state = solver.init(update, before.rank)
    return solver.solve(matvec(matrix), before, state, update, jax.random.key(0))


def call(solver, matrix=TURNED, before=None, update=UPDATE):
    before = exact() if before is None else before
    return _call(solver, jnp.asarray(matrix, jnp.float32), before, shaped(update))[0]


def projector(found):
    return helpers.projector(helpers.rows(found.eigenvectors))


def error(found, matrix=TURNED, update=UPDATE):
    """‖(P̂ − P) u‖ / ‖u‖ against the exact P."""
    gap = (projector(found) - helpers.top(matrix, RANK)[1]) @ update
    return np.linalg.norm(gap) / np.linalg.norm(update)


def test_step_of_the_basis_spans_the_products():
    found = call(bulk_sgd.power())
    expected, _ = np.linalg.qr(TURNED @ helpers.rows(exact().eigenvectors).T)
    np.testing.assert_allclose(projector(found), expected @ expected.T, atol=2e-6)
    assert int(found.num_matvecs) == RANK
    assert bool(found.converged)


def test_step_of_the_basis_gives_ritz_values_and_residuals():
    found = call(bulk_sgd.power())
    rows = helpers.rows(exact().eigenvectors)
    values, vectors = np.linalg.eigh(rows @ TURNED @ rows.T)
    ritz = vectors[:, ::-1].T @ rows
    residuals = ritz @ TURNED - values[::-1, None] * ritz
    np.testing.assert_allclose(found.eigenvalues, values[::-1], rtol=1e-5)
    np.testing.assert_allclose(
        found.residuals, np.linalg.norm(residuals, axis=1), rtol=1e-3
    )


def test_step_along_the_update_follows_its_formula():
    found = call(bulk_sgd.power("update"))
    rows, values = helpers.rows(exact().eigenvectors), SPECTRUM[:RANK]
    q = rows @ UPDATE / np.linalg.norm(rows @ UPDATE)
    product = TURNED @ rows.T @ (q / values)
    # The product joins the basis, and its part inside leaves.
    rest = rows - np.outer(rows @ product, product @ rows.T @ rows) / np.sum(
        (rows @ product) ** 2
    )
    left, _, _ = np.linalg.svd(np.vstack([product / np.linalg.norm(product), rest]).T)
    expected = left[:, :RANK]
    np.testing.assert_allclose(projector(found), expected @ expected.T, atol=2e-6)
    assert int(found.num_matvecs) == 1
    # Quotients: the least symmetric change C with (Λ + C) a = V H Vᵀa, a = Λ⁻¹ q.
    a, change = q / values, rows @ product - q
    unit = np.outer(a, a) / (a @ a)
    least = np.outer(change, a) / (a @ a)
    least = least + least.T - unit @ least
    quotients = np.linalg.eigvalsh(np.diag(values) + least)[::-1]
    np.testing.assert_allclose(found.eigenvalues, quotients, rtol=1e-5)


@pytest.mark.parametrize("along", ["basis", "update"])
def test_a_step_leaves_little_of_the_error_of_a_turn(along):
    # λ_5 / λ_4 = 0.4 at most; the gap of most pairs is far smaller.
    before, after = error(exact()), error(call(bulk_sgd.power(along)))
    assert before > 0.05
    assert after < 0.4 * before


@pytest.mark.parametrize("along", ["basis", "update"])
def test_repeated_steps_converge(along):
    solver, found = bulk_sgd.power(along), exact()
    draws = np.random.default_rng(3).standard_normal((150, SIZE))
    for draw in draws if along == "update" else draws[:25]:
        found = call(solver, before=found, update=TURNED @ draw)
    expected = helpers.top(TURNED, RANK)[1]
    np.testing.assert_allclose(projector(found), expected, atol=2e-5)
    np.testing.assert_allclose(found.eigenvalues, SPECTRUM[:RANK], rtol=1e-3)
    rows = helpers.rows(found.eigenvectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=2e-5)


@pytest.mark.parametrize("along", ["basis", "update"])
def test_lost_and_missing_bases_are_solved_for(along):
    spent = {"basis": RANK, "update": 1}[along]
    lost = call(bulk_sgd.power(along), OTHER)
    missing = call(bulk_sgd.power(along), OTHER, subspace.empty(shaped(UPDATE), RANK))
    for found in (lost, missing):
        assert bool(found.converged)
        assert error(found, OTHER) < 2e-3
    assert int(lost.num_matvecs) > RANK + spent
    careless = call(bulk_sgd.power(along, tol=0.9999), OTHER)
    assert int(careless.num_matvecs) == spent


@pytest.mark.parametrize("along", ["basis", "update"])
def test_negative_eigenvalue_is_solved_for(along):
    matrix = helpers.symmetric([5, 3, 1, *np.linspace(-0.5, -4, SIZE - 3)])
    found = call(bulk_sgd.power(along), matrix, exact(matrix))
    np.testing.assert_allclose(found.eigenvalues, [5, 3, 1, -0.5], atol=5e-3)
    assert error(found, matrix) < 0.02
    assert int(found.num_matvecs) > RANK  # of which none for a step


@pytest.mark.parametrize("along", ["basis", "update"])
def test_update_of_zeros_and_values_that_are_not_finite(along):
    still = call(bulk_sgd.power(along), MATRIX, update=np.zeros(SIZE))
    assert bool(still.converged)
    np.testing.assert_allclose(projector(still), projector(exact()), atol=2e-6)
    assert not call(bulk_sgd.power(along), MATRIX * np.nan).converged


@pytest.mark.parametrize("solver", [bulk_sgd.power(), bulk_sgd.power("update")])
def test_transform_stays_on_a_quadratic(solver):
    tx = bulk_sgd.project_bulk(RANK, solver=solver)
    params = jnp.asarray(UPDATE, jnp.float32)
    state = tx.init(params)
    loss = helpers.quadratic(MATRIX)
    step = jax.jit(functools.partial(tx.update, value_fn=loss))
    for _ in range(3):
        updates, state = step(jax.grad(loss)(params), state, params)
    expected = (np.eye(SIZE) - helpers.top(MATRIX, RANK)[1]) @ MATRIX @ UPDATE
    np.testing.assert_allclose(updates, expected, atol=2e-3 * np.abs(expected).max())
    assert int(state.failed_refreshes) == 0


def test_probe_estimates_the_error_along_the_update():
    # To first order, where what is left out is small: |λ| up to 2, against 5.
    inside = helpers.top(MATRIX, RANK)[1] @ UPDATE
    found = probe(matvec(TURNED), exact(), shaped(inside))
    assert 0.6 < float(found.drift) / error(exact(), update=inside) < 1.4
    assert float(probe(matvec(MATRIX), exact(), shaped(inside)).drift) < 1e-5


def test_drift_below_tolerance_keeps_the_basis():
    found = call(bulk_sgd.on_drift(bulk_sgd.lanczos(), tol=0.5))
    np.testing.assert_array_equal(projector(found), projector(exact()))
    assert int(found.num_matvecs) == 1
    assert bool(found.converged)


@pytest.mark.parametrize("solver", [bulk_sgd.lanczos(), bulk_sgd.power()])
def test_drift_above_tolerance_refreshes(solver):
    direct = call(solver)
    found = call(bulk_sgd.on_drift(solver, tol=0.01))
    np.testing.assert_allclose(projector(found), projector(direct), atol=1e-6)
    assert int(found.num_matvecs) == int(direct.num_matvecs) + 1


def test_drift_of_a_missing_basis_costs_no_probe():
    start = subspace.empty(shaped(UPDATE), RANK)
    found = call(bulk_sgd.on_drift(bulk_sgd.lanczos(tol=1e-5)), before=start)
    direct = call(bulk_sgd.lanczos(tol=1e-5), before=start)
    assert error(found) < 1e-4
    assert int(found.num_matvecs) == int(direct.num_matvecs)


def test_drift_is_probed_on_one_call_in_so_many():
    solver = bulk_sgd.on_drift(bulk_sgd.lanczos(), tol=0.01, every=3)
    state, spent, found = solver.init(shaped(UPDATE), RANK), [], exact()
    solve = jax.jit(
        lambda matrix, found, state: solver.solve(
            matvec(matrix), found, state, shaped(UPDATE), jax.random.key(0)
        )
    )
    for matrix in (MATRIX, TURNED, TURNED, TURNED, TURNED):
        found, state = solve(matrix, found, state)
        spent.append(int(found.num_matvecs))
    assert spent[:3] == [1, 0, 0]
    assert spent[3] > RANK
    assert spent[4] == 0
    assert error(found) < 2e-3


@pytest.mark.parametrize(
    "solver",
    [
        bulk_sgd.power(solve_every=4),
        bulk_sgd.power("update", solve_every=4),
        bulk_sgd.on_drift(bulk_sgd.lanczos(), solve_every=4),
    ],
)
def test_direction_that_enters_orthogonally_is_seen_after_so_many_calls(solver):
    _, vectors = np.linalg.eigh(MATRIX)
    grown = MATRIX + 9 * np.outer(vectors[:, 5], vectors[:, 5])
    state, found, errors = solver.init(shaped(UPDATE), RANK), exact(), []
    solve = jax.jit(
        lambda found, state: solver.solve(
            matvec(grown), found, state, shaped(vectors[:, -1]), jax.random.key(0)
        )
    )
    for _ in range(4):
        found, state = solve(found, state)
        errors.append(error(found, grown))
    assert min(errors[:3]) > 0.2
    assert errors[3] < 2e-3


def test_probe_that_is_not_finite_calls_the_solver():
    found = call(bulk_sgd.on_drift(bulk_sgd.lanczos()), MATRIX * np.nan)
    assert not found.converged
