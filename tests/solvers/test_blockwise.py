"""Dominant subspaces block by block against dense float64 answers."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd.solvers import subspace

EXACT = helpers.exact_solver()
SIZES = {"encoder": 9, "head": 6}  # in the order of the leaves
SIZE, RANK = 15, 4
MATRIX = helpers.symmetric([9, 8, 7, 6, 5, *np.linspace(1, -2, SIZE - 5)])
UPDATE = np.random.default_rng(0).standard_normal(SIZE)


def shaped(flat):
    flat = jnp.asarray(flat, jnp.float32)
    encoder = {"bias": flat[:3], "kernel": flat[3:9].reshape(2, 3)}
    return {"encoder": encoder, "head": {"kernel": flat[9:]}}


@jax.jit
def matvec(vector):
    return shaped(jnp.asarray(MATRIX, jnp.float32) @ helpers.ravel_pytree(vector)[0])


def solve(solver, before=None, state=None, rank=RANK):
    like = shaped(UPDATE)
    before = subspace.empty(like, rank) if before is None else before
    state = solver.init(like, rank) if state is None else state
    return jax.jit(
        lambda before, state: solver.solve(
            matvec, before, state, like, jax.random.key(0)
        )
    )(before, state)


def expected(groups, rank=RANK):
    """Eigenvalues and P of the diagonal blocks of the matrix, in float64."""
    values, projector = [], np.zeros((SIZE, SIZE))
    for index, group in enumerate(groups):
        share = rank // len(groups) + (index < rank % len(groups))
        block = np.ix_(group, group)
        leading, inside = helpers.top(MATRIX[block], share)
        values.extend(leading)
        projector[block] = inside
    return values, projector


def assert_found(found, groups, rank=RANK):
    values, projector = expected(groups, rank)
    rows = helpers.rows(found.eigenvectors)
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-4)
    np.testing.assert_allclose(helpers.projector(rows), projector, atol=1e-5)


LAYERS = [np.arange(9), np.arange(9, 15)]


@pytest.mark.parametrize(
    ("solver", "by", "groups"),
    [
        (EXACT, None, LAYERS),
        (EXACT, "^[^/]*", LAYERS),
        (EXACT, lambda path: path.split("/")[-1], [np.arange(3), np.arange(3, 15)]),
        (EXACT, "encoder", [np.arange(9)]),  # the head is in the bulk
        (bulk_sgd.lanczos(1e-5), None, LAYERS),
    ],
)
def test_blocks_have_their_own_eigenvectors(solver, by, groups):
    found, _ = solve(bulk_sgd.blockwise(solver, by))
    assert_found(found, groups)
    assert bool(found.converged)
    if solver is EXACT:
        assert int(found.num_matvecs) == sum(map(len, groups))


def test_rank_that_the_blocks_do_not_divide():
    found, _ = solve(bulk_sgd.blockwise(EXACT), rank=5)
    assert_found(found, LAYERS, 5)


def test_what_a_block_refuses_is_told_with_its_rank():
    message = r"columns is 2; it must divide the rank, 3, .* block 'encoder' is 3, of 5"
    with pytest.raises(ValueError, match=message):
        solve(bulk_sgd.blockwise(bulk_sgd.streaming(2)), rank=5)


def test_overlap_with_the_global_subspace():
    found, _ = solve(bulk_sgd.blockwise(EXACT))
    whole, _ = solve(EXACT)
    truth = helpers.top(MATRIX, RANK)[1]
    share = np.sum(expected(LAYERS)[1] * truth) / RANK
    np.testing.assert_allclose(found.overlap(whole), share, atol=1e-5)
    assert 0.2 < share < 0.9  # blocks of a dense matrix are not the matrix


@pytest.mark.slow
def test_a_block_goes_on_from_its_own_rows():
    power = bulk_sgd.blockwise(bulk_sgd.power())
    exact, _ = solve(bulk_sgd.blockwise(EXACT))
    found, _ = solve(power, exact)
    assert_found(found, LAYERS)
    assert int(found.num_matvecs) == RANK  # a step, no solve


@pytest.mark.slow
def test_repeated_eigenvalues_of_a_last_layer(x64):
    """Under squared error each eigenvalue of its block occurs once per output."""
    inputs = jnp.asarray(np.random.default_rng(0).standard_normal((60, 30)))
    objective = bulk_sgd.Objective(
        lambda p, x: jnp.tanh(x @ p["hidden"]) @ p["out"],
        helpers.squared_error,
        inputs,
        jnp.ones((60, 4)),
    )
    hidden = jax.random.normal(jax.random.key(1), (30, 20), jnp.float64)
    params = {"hidden": hidden / 5, "out": jnp.zeros((20, 4))}
    features = jnp.tanh(inputs @ params["hidden"])
    exact = np.linalg.eigvalsh(2 * features.T @ features / 60)[::-1].repeat(4)[:6]

    def found(solver):
        solver = bulk_sgd.blockwise(solver, by="out")
        return solver.solve(
            bulk_sgd.hessian(objective, params),
            subspace.empty(params, 6),
            solver.init(params, 6),
            params,
            jax.random.key(0),
        )[0]

    pairs = found(bulk_sgd.lanczos(repeated=True))
    np.testing.assert_allclose(pairs.eigenvalues, exact, rtol=1e-3)
    assert pairs.converged
    single = found(bulk_sgd.lanczos())  # what the argument is for
    assert single.eigenvalues[1] < 0.9 * exact[1]


def test_states_of_the_blocks_are_kept_apart():
    solver = bulk_sgd.blockwise(bulk_sgd.adaptive(EXACT, 6.0))
    found, (encoder, head) = solve(solver)
    values = np.asarray(found.eigenvalues)
    assert int(encoder.kept) == np.sum(values[:2] > 6)
    assert int(head.kept) == np.sum(values[2:] > 6)
    assert int(found.kept) == np.sum(values > 6)


def test_transform_scales_layers_by_their_own_subspace():
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.blockwise(EXACT))
    params = shaped(np.zeros(SIZE))
    loss = helpers.quadratic(MATRIX)
    updates, state = jax.jit(lambda u, s: tx.update(u, s, params, value_fn=loss))(
        shaped(UPDATE), tx.init(params)
    )
    projector = expected(LAYERS)[1]
    np.testing.assert_allclose(
        helpers.flat(updates), UPDATE - projector @ UPDATE, atol=1e-5
    )
    marked = optax.tree_utils.tree_map_params(tx, lambda x: x + 7, state)
    assert jax.tree.structure(marked) == jax.tree.structure(state)


def test_mask_of_the_transform_leaves_blocks_of_the_rest():
    mask = {"encoder": {"bias": False, "kernel": True}, "head": True}
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.blockwise(EXACT), mask=mask)
    loss = helpers.quadratic(MATRIX)
    params = shaped(np.zeros(SIZE))
    updates, _ = jax.jit(lambda u, s: tx.update(u, s, params, value_fn=loss))(
        shaped(UPDATE), tx.init(params)
    )
    projector = expected([np.arange(3, 9), np.arange(9, 15)])[1]
    np.testing.assert_allclose(
        helpers.flat(updates), UPDATE - projector @ UPDATE, atol=1e-5
    )
