"""The rank that follows the spectrum, against dense float64 answers."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd.lab import config
from bulk_sgd.lab.devices.sharding import Layout, make_mesh
from bulk_sgd.lab.from_config import solvers
from bulk_sgd.lab.training import steps

SIZE, RANK = 30, 5
SPECTRUM = np.array([20, 8, 6, 0.5, 0.4, *np.linspace(0.1, -3, SIZE - 5)])
MATRIX = helpers.symmetric(SPECTRUM)
START = np.random.default_rng(0).standard_normal(SIZE)
EXACT = helpers.exact_solver()


def states(solver, matrices=(MATRIX,), rank=RANK):
    """States of a projection along losses ½ xᵀAx, one after the other."""
    tx = bulk_sgd.project_bulk(rank, solver=solver)
    params = jnp.asarray(START, jnp.float32)
    state, found = tx.init(params), []

    @jax.jit
    def step(matrix, state):
        return tx.update(params, state, params, value_fn=lambda x: 0.5 * x @ matrix @ x)

    for matrix in matrices:
        updates, state = step(jnp.asarray(matrix, jnp.float32), state)
        found.append((np.asarray(updates, np.float64), state))
    return found


def assert_projects(solver, expected, matrix=MATRIX):
    """The update loses the part in so many leading eigenvectors, and no more."""
    updates, state = states(solver, (matrix,))[0]
    inside = helpers.top(matrix, expected)[1] @ START
    np.testing.assert_allclose(updates, START - inside, atol=2e-5)
    assert int(state.solver_state.kept) == expected
    rows = helpers.rows(state.subspace.eigenvectors)
    assert np.count_nonzero(np.linalg.norm(rows, axis=1)) == expected
    values = np.linalg.eigvalsh(matrix)[::-1][:RANK]
    np.testing.assert_allclose(state.subspace.eigenvalues, values, atol=1e-4)


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.0, 5), (0.45, 4), (7.0, 2), (19.9, 1), (20.1, 0)]
)
def test_threshold(threshold, kept):
    assert_projects(bulk_sgd.adaptive(EXACT, threshold), kept)


def test_threshold_in_units_of_the_inverse_learning_rate():
    assert_projects(bulk_sgd.adaptive(EXACT, 2, learning_rate=0.3), 2)
    assert_projects(bulk_sgd.adaptive(EXACT, 2, learning_rate=0.0), 0)


@pytest.mark.parametrize(
    ("leading", "kept"),
    [
        ([20, 8, 6, 0.5, 0.4], 3),
        ([8, 0.5, 0.4, 0.3, 0.2], 1),
        ([9, 8, 7, 6, 5], 4),
        ([3, 2, -0.1, -0.2, -0.3], 2),  # nothing negative
        ([-0.1, -0.2, -0.3, -0.4, -0.5], 0),
        ([0, 0, 0, 0, 0], 0),
    ],
)
def test_largest_gap(leading, kept):
    matrix = helpers.symmetric([*leading, *np.linspace(-1, -3, SIZE - RANK)])
    if leading[-1] == 0:
        matrix = 0 * matrix
    assert_projects(bulk_sgd.adaptive(EXACT), kept, matrix)


def test_lanczos_goes_on_from_all_vectors():
    plain = bulk_sgd.lanczos(1e-4)
    skew = np.random.default_rng(1).standard_normal((SIZE, SIZE)) * 1e-3
    turn = np.linalg.solve(np.eye(SIZE) - skew + skew.T, np.eye(SIZE) + skew - skew.T)
    path = MATRIX, turn @ MATRIX @ turn.T
    alone = [state for _, state in states(plain, path)]
    wrapped = [state for _, state in states(bulk_sgd.adaptive(plain, 7.0), path)]
    for one, other in zip(alone, wrapped):
        assert int(one.total_matvecs) == int(other.total_matvecs)
        np.testing.assert_array_equal(
            one.subspace.eigenvectors, other.solver_state.whole.eigenvectors
        )
        assert int(other.solver_state.kept) == 2


@pytest.mark.parametrize(
    "solver",
    [bulk_sgd.power(), bulk_sgd.streaming(0, gain=0.5)],
    ids=["power", "streaming"],
)
def test_power_and_streaming_find_what_was_dropped(solver):
    grown = helpers.symmetric([20, 8, 6, 5, 4, *SPECTRUM[5:]])
    shrunk = [MATRIX] * 20 + [grown] * 20
    (_, small), (updates, large) = (states(
        bulk_sgd.adaptive(solver, 1.0), shrunk)[i] for i in (19, 39))  # fmt: skip
    assert (int(small.solver_state.kept), int(large.solver_state.kept)) == (3, 5)
    expected = START - helpers.top(grown, 5)[1] @ START
    np.testing.assert_allclose(updates, expected, atol=2e-2)


def test_inside_and_around_a_drift_probe():
    for solver in (
        bulk_sgd.adaptive(bulk_sgd.on_drift(EXACT), 7.0),
        bulk_sgd.on_drift(bulk_sgd.adaptive(EXACT, 7.0)),
    ):
        _, last = states(solver, [MATRIX] * 3)[-1]
        assert int(last.total_matvecs) == SIZE + 2
        rows = helpers.rows(last.subspace.eigenvectors)
        expected = helpers.top(MATRIX, 2)[1]
        np.testing.assert_allclose(helpers.projector(rows), expected, atol=1e-5)


def test_failed_solve_keeps_subspace_and_state():
    (_, before), (_, after) = states(
        bulk_sgd.adaptive(EXACT, 7.0), (MATRIX, np.nan * MATRIX)
    )
    assert int(after.failed_refreshes) == 1
    for one, other in zip(*map(jax.tree.leaves, (before[1:3], after[1:3]))):
        np.testing.assert_array_equal(one, other)


def test_the_subspace_that_is_kept_can_be_read_by_name():
    _, state = states(bulk_sgd.adaptive(bulk_sgd.lanczos(), 7.0), [MATRIX])[0]
    for name in ("subspace", "solver_state", *bulk_sgd.Subspace._fields):
        optax.tree_utils.tree_get(state, name)
    rows = helpers.rows(optax.tree_utils.tree_get(state, "eigenvectors"))
    assert (rows.any(axis=1)).sum() == 2


def test_both_bases_are_laid_out_as_such():
    fields = config.default()
    fields.subspace.update(rank=RANK, keep="gap")
    layout = Layout(make_mesh(fields.sharding))
    programs = steps.Programs(fields, layout)
    state = jax.eval_shape(programs.init, jnp.zeros((4, 8)))
    parts = layout.state(state).projection
    rows = layout.basis(state.projection.subspace.eigenvectors)
    assert rows.spec != layout.replicated.spec
    assert parts.subspace.eigenvectors == rows
    assert parts.solver_state.all_rows.rows == rows
    assert parts.solver_state.kept == layout.replicated


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"keep": "gap"}, 3),
        ({"keep": "eigenvalue", "threshold": 7.0}, 2),
        ({"keep": "rate", "threshold": 7.0}, 1),
    ],
)
def test_fields_of_the_config(changes, kept):
    fields = config.default().subspace
    fields.update(rank=RANK, tol=1e-5, max_matvecs=100, **changes)
    solvers.validate(fields)
    assert_projects(solvers.build(fields, learning_rate=0.5), kept)


def test_the_learning_rate_of_a_run_sets_the_threshold():
    """Traced in the binary, as every arm and cell may have another one."""

    def kept(rate):
        solver = bulk_sgd.adaptive(EXACT, 2, learning_rate=rate)
        tx = bulk_sgd.project_bulk(RANK, solver=solver)
        params = jnp.asarray(START, jnp.float32)
        loss = helpers.quadratic(MATRIX)
        return tx.update(params, tx.init(params), params, value_fn=loss)[1]

    states = jax.jit(kept)
    assert [int(states(r).solver_state.kept) for r in (0.05, 0.3, 1.0)] == [0, 2, 3]


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("keep", "most", "subspace.keep is 'most'; it must be one of all, eigenv"),
        ("threshold", -1.0, "subspace.threshold is -1.0; it must be a number, at l"),
        ("rank", 1, r"subspace.rank is 1; it must be at least 2 \(config.subspace.k"),
    ],
)
def test_wrong_fields_are_named(field, value, match):
    fields = config.default()
    fields.subspace.keep = "gap"
    fields.subspace[field] = value
    with pytest.raises(ValueError, match=match):
        config.validate(fields)
