"""Principal components of updates against dense float64 answers."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bulk_sgd
from bulk_sgd.lab.devices.sharding import Layout
from bulk_sgd.lab.training.state import TrainState
from bulk_sgd.solvers import subspace

SIZE, RANK = 20, 3
SCALES = np.concatenate([[10, 6, 4], np.linspace(1, 0.1, SIZE - 3)])
FRAME = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]


def draw(count, seed=1):
    """Updates, of which three directions hold the most."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, SIZE)) * SCALES @ FRAME


def shaped(flat):
    flat = jnp.asarray(flat, jnp.float32)
    return {"a": flat[:12].reshape(3, 4), "b": flat[12:]}


def no_matvec(vector):
    raise AssertionError("a Hessian-free solver took a product")


def follow(solver, updates, rank=RANK):
    """The subspaces that a solver gives along the updates."""

    @jax.jit
    def call(update, found, state):
        return solver.solve(no_matvec, found, state, update, jax.random.key(0))

    like = shaped(updates[0])
    found, state = subspace.empty(like, rank), solver.init(like, rank)
    results = []
    for update in updates:
        found, state = call(shaped(update), found, state)
        results.append(found)
    return results


def components(updates, rank=RANK):
    """Root mean squares and projector of the leading components, in float64."""
    _, singular, vectors = np.linalg.svd(updates, full_matrices=False)
    return singular[:rank] / len(updates) ** 0.5, helpers.projector(vectors[:rank])


def assert_spans(found, expected, atol):
    rows = helpers.rows(found.eigenvectors)
    np.testing.assert_allclose(helpers.projector(rows), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("count", [8, 20])
def test_components_of_the_window_before_the_update(count):
    updates = draw(count + 1)
    found = follow(bulk_sgd.update_pca(8), updates)[-1]
    values, expected = components(updates[-9:-1])
    # float32 squares, with the third component at a tenth of the first.
    assert_spans(found, expected, 1e-5)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-5)
    assert int(found.num_matvecs) == 0
    assert bool(found.converged)


def test_an_update_is_not_in_its_own_subspace():
    updates = draw(3)
    found = follow(bulk_sgd.update_pca(8), updates)
    assert [int(each.kept) for each in found] == [0, 1, 2]
    assert not helpers.rows(found[0].eigenvectors).any()
    assert_spans(found[2], components(updates[:2], 2)[1], 1e-5)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_eigenvalues_are_means_over_the_updates_that_are_known(count):
    updates = draw(count + 1)
    found = follow(bulk_sgd.update_pca(8), updates, rank=2)[-1]
    values, _ = components(updates[max(count - 8, 0) : count], 2)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-5)


def test_update_that_is_not_finite_is_not_counted():
    updates = draw(5)
    updates[2] = np.nan
    found = follow(bulk_sgd.update_pca(8), updates)
    assert [bool(each.converged) for each in found] == [True, True, False, True, True]
    rows = [helpers.rows(each.eigenvectors) for each in found]
    np.testing.assert_array_equal(rows[2], rows[1])
    values, expected = components(updates[[0, 1, 3]])
    assert_spans(found[4], expected, 1e-5)
    np.testing.assert_allclose(found[4].eigenvalues, values, rtol=1e-5)


def test_no_select_between_two_windows():
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.update_pca(7))
    like = shaped(draw(1)[0])
    step = lambda state: tx.update(like, state, like, value_fn=lambda p: p["b"][0])[1]
    jaxpr = jax.make_jaxpr(step)(tx.init(like))
    chosen = {
        equation.outvars[0].aval.shape
        for equation in helpers.equations(jaxpr)
        if equation.primitive.name == "select_n"
    }
    assert (7, 7) in chosen  # the inner products
    assert not chosen & {(7, 3, 4), (7, 8)}


def test_components_of_very_different_length_are_orthonormal():
    updates = draw(9) / SCALES[0]
    updates = updates @ FRAME.T * np.array([1, 1e-2, 1e-2, *[0] * 17]) @ FRAME
    found = follow(bulk_sgd.update_pca(8), updates)[-1]
    rows = helpers.rows(found.eigenvectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-5)


def test_fewer_directions_than_the_rank():
    updates = np.outer(np.arange(1, 10), FRAME[0])
    found = follow(bulk_sgd.update_pca(8), updates)[-1]
    assert int(found.kept) == 1
    assert_spans(found, np.outer(FRAME[0], FRAME[0]), 1e-5)


def test_components_are_taken_at_one_call_in_so_many():
    updates = draw(12)
    found = follow(bulk_sgd.update_pca(8, every=4), updates)
    assert_spans(found[10], components(updates[:8])[1], 1e-5)
    assert_spans(found[11], components(updates[:8])[1], 1e-5)


def moment(updates, gain):
    """The average that streaming_pca stands for, in float64, of all components."""
    found = np.zeros((SIZE, SIZE))
    for count, update in enumerate(updates, 1):
        weight = max(gain, 1 / count)
        found = (1 - weight) * found + weight * np.outer(update, update)
    return found


def test_streaming_components_are_exact_while_all_fit_in():
    updates = draw(5)
    found = follow(bulk_sgd.streaming_pca(), updates, rank=6)
    for count, each in enumerate(found):
        assert int(each.kept) == count  # the updates before this one
        assert np.isfinite(helpers.rows(each.eigenvectors)).all()
    matrix = moment(updates[:-1], 0.01)
    values, projector = helpers.top(matrix, 4)
    assert_spans(found[-1], projector, 1e-5)
    np.testing.assert_allclose(found[-1].eigenvalues[:4], np.sqrt(values), rtol=1e-5)


@pytest.mark.parametrize("gain", [0.01, 0.1])
def test_streaming_components_follow_their_recursion(gain):
    updates = draw(60)
    found = follow(bulk_sgd.streaming_pca(gain), updates)[-1]
    leading = np.zeros((SIZE, SIZE))
    for count, update in enumerate(updates[:-1], 1):
        weight = max(gain, 1 / count)
        leading = (1 - weight) * leading + weight * np.outer(update, update)
        values, vectors = np.linalg.eigh(leading)
        leading = (vectors[:, -RANK:] * values[-RANK:]) @ vectors[:, -RANK:].T
    values, projector = helpers.top(leading, RANK)
    # Sixty turns in float32, each off by its rounding over the gaps.
    assert_spans(found, projector, 1e-4)
    np.testing.assert_allclose(found.eigenvalues, np.sqrt(values), rtol=1e-4)
    # What was cut off is small: the true average has nearly the same components.
    exact = helpers.top(moment(updates[:-1], gain), RANK)[1]
    rows = helpers.rows(found.eigenvectors)
    assert np.sum(helpers.projector(rows) * exact) / RANK > 0.9


def test_streaming_components_stay_orthonormal():
    found = follow(bulk_sgd.streaming_pca(0.05), draw(301))[-2]
    rows = helpers.rows(found.eigenvectors)
    # Fifty turns, each off by some units of float32.
    np.testing.assert_allclose(rows @ rows.T, np.eye(RANK), atol=1e-5)


def test_the_window_is_laid_out_like_a_basis():
    layout = Layout(helpers.abstract_mesh(1, 4))
    tx = bulk_sgd.project_bulk(RANK, solver=bulk_sgd.update_pca(8))
    like = shaped(draw(1)[0])
    state = jax.eval_shape(
        lambda: TrainState(*[jnp.zeros(())] * 6)._replace(
            params=like, inner=(), projection=tx.init(like)
        )
    )
    placed = layout.state(state).projection.solver_state
    assert tuple(placed.window.rows["a"].spec) == (None, None, "fsdp")
    assert placed.products == layout.replicated


def test_an_update_of_zeros_is_in_no_unit():
    updates = 1e-25 * draw(6)
    updates[2] = 0
    found = follow(bulk_sgd.update_pca(6), updates)[-1]
    values, expected = components(updates[:-1])  # those before the last call
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-4)
    assert_spans(found, expected, atol=1e-4)
