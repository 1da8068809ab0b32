"""The Krylov filter against dense float64 answers."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.linalg import basis
from bulk_sgd.solvers import krylov, subspace

pytestmark = pytest.mark.slow  # each test trains, or compiles solves of its own

SIZE, RANK = 30, 4
SPECTRUM = np.array([20, 12, 8, 6, *np.linspace(2, -3, SIZE - 4)])
MATRIX = helpers.symmetric(SPECTRUM)
EDGE = (6 + 2) / 2
UPDATE = np.random.default_rng(0).standard_normal(SIZE) @ MATRIX


def calls(solver, matrices, rank=RANK, update=UPDATE):
    """What a solver gives along the matrices, one after the other."""
    update = jnp.asarray(update, jnp.float32)

    @jax.jit
    def call(matrix, before, state):
        matvec = lambda v: matrix @ v
        return solver.solve(matvec, before, state, update, jax.random.key(0))

    found, state = subspace.empty(update, rank), solver.init(update, rank)
    results = []
    for matrix in matrices:
        found, state = call(jnp.asarray(matrix, jnp.float32), found, state)
        results.append(found)
    return results


def ritz_filter(matrix, update, steps, edge, rank=RANK):
    """P̂ in float64: Ritz pairs above the edge of the Krylov space of the update."""
    frame = update[:, None] / np.linalg.norm(update)
    for _ in range(steps - 1):
        new = matrix @ frame[:, -1]
        for _ in range(2):
            new = new - frame @ (frame.T @ new)
        frame = np.column_stack([frame, new / np.linalg.norm(new)])
    values, vectors = np.linalg.eigh(frame.T @ matrix @ frame)
    chosen = (frame @ vectors)[:, values > edge][:, -rank:]
    return chosen @ chosen.T


def projected(found, vector=UPDATE):
    return helpers.projector(helpers.rows(found.eigenvectors)) @ vector


def test_first_call_is_a_full_solve():
    found = calls(bulk_sgd.krylov_filter(5), [MATRIX])[0]
    expected = helpers.top(MATRIX, RANK)[1]
    rows = helpers.rows(found.eigenvectors)
    # Residuals of 1e-3 λ_1 over the gap of 4, squared to second order in P.
    np.testing.assert_allclose(helpers.projector(rows), expected, atol=1e-2)
    np.testing.assert_allclose(found.eigenvalues, SPECTRUM[:RANK], rtol=1e-4)
    assert bool(found.converged)
    assert int(found.num_matvecs) > RANK


@pytest.mark.parametrize("steps", [2, 3, 6, 12])
def test_keeps_ritz_vectors_above_the_threshold(steps):
    found = calls(bulk_sgd.krylov_filter(steps), [MATRIX] * 2)[1]
    expected = ritz_filter(MATRIX, UPDATE, steps, EDGE)
    scale = np.linalg.norm(UPDATE)
    # float32, and a threshold that is off by the error of two eigenvalues.
    np.testing.assert_allclose(
        projected(found), expected @ UPDATE, atol=1e-4 * scale, rtol=0
    )
    assert int(found.num_matvecs) == steps
    assert int(found.kept) == round(np.trace(expected))
    assert bool(found.converged)


def test_error_on_the_update_falls_with_the_steps():
    exact = helpers.top(MATRIX, RANK)[1] @ UPDATE
    errors = [
        np.linalg.norm(projected(calls(bulk_sgd.krylov_filter(m), [MATRIX] * 2)[1])
                       - exact)
        for m in (3, 8, 14)
    ]  # fmt: skip
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.01 * errors[0]


def test_number_kept_follows_the_spectrum_up_to_the_rank():
    path = [MATRIX]
    for values in (
        [20, 12, *SPECTRUM[4:], 1, 1],
        [20, 19, 17, 14, 11, 8, *SPECTRUM[6:]],
    ):
        path.append(helpers.symmetric(values))
    found = calls(bulk_sgd.krylov_filter(SIZE), path)
    assert [int(each.kept) for each in found] == [4, 2, 4]
    expected = helpers.top(path[1], 2)[1]
    np.testing.assert_allclose(
        helpers.projector(helpers.rows(found[1].eigenvectors)), expected, atol=1e-4
    )


def test_threshold_scales_with_the_largest_eigenvalue():
    found = calls(bulk_sgd.krylov_filter(SIZE), [MATRIX, 100 * MATRIX])
    assert int(found[1].kept) == RANK


def test_full_solves_come_at_every_so_many_calls():
    found = calls(bulk_sgd.krylov_filter(3, calibrate_every=3), [MATRIX] * 5)
    spent = [int(each.num_matvecs) for each in found]
    assert [count > 3 for count in spent] == [True, False, False, True, False]


def test_start_of_a_full_solve_is_no_other_random_vector(monkeypatch):
    class Seen(Exception):
        pass

    def spy(matvec, start, *args, key, **options):
        raise Seen(start, key)

    monkeypatch.setattr(krylov, "top_eigenpairs", spy)
    update, solver = jnp.ones(SIZE), bulk_sgd.krylov_filter(3)
    before = subspace.empty(update, RANK), solver.init(update, RANK)
    with jax.disable_jit(), pytest.raises(Seen) as seen:
        solver.solve(lambda v: MATRIX @ v, *before, update, jax.random.key(0))
    start, key = seen.value.args
    own = basis.random_normal(key, update)
    cosine = start @ own / jnp.linalg.norm(start) / jnp.linalg.norm(own)
    assert abs(cosine) < 0.9
    assert (key != jax.random.key(0)).all()


def test_fewer_steps_than_the_rank_leave_rows_of_zeros():
    found = calls(bulk_sgd.krylov_filter(2), [MATRIX] * 2)[1]
    assert int(found.kept) <= 2
    np.testing.assert_array_equal(found.eigenvalues[2:], 0)
    np.testing.assert_array_equal(found.residuals[2:], 0)
    assert found.rank == RANK


def test_negative_spectrum_and_all_vectors():
    negative = -np.eye(SIZE) * 2 - helpers.symmetric(np.linspace(0, 5, SIZE))
    found = calls(bulk_sgd.krylov_filter(SIZE), [negative] * 2)[1]
    assert int(found.kept) == RANK
    small = helpers.symmetric([3, 2, -1])
    update = np.ones(3)
    found = calls(bulk_sgd.krylov_filter(10), [small] * 2, 3, update)[1]
    np.testing.assert_allclose(projected(found, update), update, atol=1e-5)
