"""What a step does to the loss, against dense float64 matrices and known quadratics."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import dense, flat, rows
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.linalg import basis

RANK = 3


@pytest.fixture(scope="module")
def point():
    """An objective in float64, parameters, an update, and a subspace of other data.

    So the cross term is not zero.
    """
    with jax.enable_x64(True):
        objective, params = helpers.objective(
            helpers.mlp(), helpers.squared_error, dtype=jnp.float64
        )
        updates = basis.scale(-0.01, jax.grad(objective.take(jnp.arange(3)))(params))
        part = objective.take(jnp.arange(4))
        pairs = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(part, params), params, RANK)
        return objective, params, updates, pairs


@pytest.fixture(params=["dense", "in factors"])
def space(request, x64, point):
    return point[3] if request.param == "dense" else point[3].factored(1)[0]


def test_changes_and_sharpness_equal_those_of_the_dense_matrix(x64, point, space):
    objective, params, updates, _ = point
    found = bulk_sgd.step_measures(objective, params, updates, space)
    matrix = dense(bulk_sgd.hessian(objective, params), params)
    gradient, u = flat(jax.grad(objective)(params)), flat(updates)
    U = np.stack([flat(basis.row(space.eigenvectors, i)) for i in range(RANK)])
    inside = U.T @ (U @ u)
    outside = u - inside
    unravel = ravel_pytree(params)[1]
    loss = lambda v: float(objective(unravel(flat(params) + v)))
    change = lambda v: loss(v) - loss(0 * u)
    predicted = lambda v: gradient @ v + v @ matrix @ v / 2
    cross = inside @ matrix @ outside
    assert abs(cross) > 1e-4 * abs(predicted(u))  # far above the tolerances
    expected = {
        "predicted_dominant": predicted(inside),
        "predicted_bulk": predicted(outside),
        "predicted_cross": cross,
        "measured_dominant": change(inside),
        "measured_bulk": change(outside),
        "measured_whole": change(u),
        "sharpness_update": u @ matrix @ u / (u @ u),
        "sharpness_gradient": gradient @ matrix @ gradient / (gradient @ gradient),
    }
    for name, value in expected.items():
        # Differences of losses of about 10, to rounding.
        assert getattr(found, name) == pytest.approx(value, rel=1e-8, abs=1e-13), name
    whole = sum(found[:3])
    assert whole == pytest.approx(predicted(u), rel=1e-8)
    assert abs(whole - found.measured_whole) < 0.1 * abs(whole)


def test_critical_scale_is_where_the_loss_is_that_of_the_start(x64, point):
    objective, params, updates, pairs = point
    unravel = ravel_pytree(params)[1]
    found = bulk_sgd.step_measures(objective, params, updates, pairs)
    along = lambda s: float(objective(unravel(flat(params) + s * flat(updates))))
    scales = found.critical_scale * np.array([0.99, 1.01])
    losses = [along(s) - along(0.0) for s in scales]
    assert losses[0] < 0 < losses[1]
    assert all(along(s) < along(0.0) for s in np.linspace(0.01, 0.98, 20) * scales[0])
    exact = bulk_sgd.critical_sharpness(
        objective, params, updates, 0.01, tol=1e-12, max_losses=80
    )
    assert along(2 / (0.01 * exact)) == pytest.approx(along(0.0), rel=1e-11)
    uphill = basis.scale(-1.0, updates)
    assert np.isnan(bulk_sgd.critical_sharpness(objective, params, uphill))
    upward = bulk_sgd.step_measures(objective, params, uphill, pairs)
    assert np.isnan(upward.critical_scale)
    assert np.isfinite(upward[:-1]).all()


def test_a_step_over_a_barrier_is_no_descent(x64):
    loss = lambda x: x - 2 * x**2 + x**4 / 4  # rises at 0, and is lower at 1
    x, step = jnp.zeros(()), jnp.ones(())
    pairs = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(loss, x), x, 1)
    found = bulk_sgd.step_measures(loss, x, step, pairs)
    assert found.measured_whole == pytest.approx(-0.75)
    assert np.isnan(found.critical_scale)
    # Losses alone do not tell: the other root of 1 − 2 s + s³ / 4.
    root = 2 / bulk_sgd.critical_sharpness(loss, x, step)
    assert root == pytest.approx(np.roots([1 / 4, 0, -2, 1]).max(), rel=0.005)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_critical_scale_next_to_rounding(x64, dtype):
    # Losses are multiples of 1/64. The largest decrease, 1/2 at half of s_c, is 32 of
    # these units, and that of u itself, 1/150 of it, is lost.
    offset = 1 / (64 * float(jnp.finfo(dtype).eps))
    x, scale = jnp.ones((), jnp.promote_types(dtype, jnp.float32)), 600
    loss = lambda x: (offset + 0.5 * x.astype(jnp.float64) ** 2).astype(dtype)
    pairs = bulk_sgd.top_eigenpairs(lambda v: v, x, 1)
    found = {}
    for sign in (-1, 0, 1):
        step = jnp.asarray(sign * 2 / scale, x.dtype)
        measures = bulk_sgd.step_measures(loss, x, step, pairs)
        sharpness = bulk_sgd.critical_sharpness(loss, x, step)
        found[sign] = [measures.critical_scale, 2 / sharpness]
    # Five units too high count as lower at most: 5.5/32 is 4 s (s − 1) at s = 1.04.
    np.testing.assert_allclose(found[-1], scale, rtol=0.05)
    assert np.isnan([*found[0], *found[1]]).all()


@pytest.mark.parametrize("factor", [0.01, 0.4, 1.0, 30.0])
def test_critical_sharpness_of_a_quadratic_is_directional(x64, factor):
    matrix = helpers.symmetric(np.linspace(-1, 40, 9))
    loss, x = helpers.quadratic(matrix), np.arange(9.0) - 3
    gradient, u = matrix @ x, np.cos(np.arange(9.0))
    u *= -np.sign(u @ gradient) * factor / 40
    scale = -2 * gradient @ u / (u @ matrix @ u)
    # An interval of relative width tol, of which the middle is taken.
    exact = {"tol": 1e-10, "max_losses": 60}
    found = bulk_sgd.critical_sharpness(loss, x, u, 0.1, **exact)
    assert found == pytest.approx(2 / (0.1 * scale), rel=1e-10)
    rate = factor / 40
    along = gradient @ matrix @ gradient / (gradient @ gradient)
    step = -rate * gradient
    found = bulk_sgd.critical_sharpness(loss, x, step, rate, **exact)
    assert found == pytest.approx(along, rel=1e-10)
    assert bulk_sgd.critical_sharpness(loss, x, step, rate) == pytest.approx(
        along, rel=0.005
    )


def test_search_takes_losses_alone_and_few_of_them():
    taken = []

    def told(x):
        jax.debug.callback(lambda: taken.append(1))
        return 0.5 * jnp.sum(x**2)

    x = jnp.ones(3)
    for step in (-1e-3 * x, -x, x):
        taken.clear()
        jax.block_until_ready(bulk_sgd.critical_sharpness(told, x, step))
        assert 2 < len(taken) <= 20
    steep = lambda x: jnp.sum(jnp.where(x < -2, jnp.nan, x))  # NaN is no decrease
    found = bulk_sgd.critical_sharpness(steep, x, -x)
    assert 2 / found == pytest.approx(3, rel=0.005)


def test_small_updates_stay_in_the_range_of_float32():
    scale = 1e-25  # its square is not there
    loss = lambda x: 0.5 * jnp.sum(jnp.array([40.0, 1.0]) * x**2)
    pairs = bulk_sgd.top_eigenpairs(bulk_sgd.hessian(loss, jnp.ones(2)), jnp.ones(2), 1)
    found = bulk_sgd.step_measures(
        loss, jnp.ones(2), scale * jnp.array([-3.0, -4.0]), pairs
    )
    assert found.sharpness_update == pytest.approx((9 * 40 + 16) / 25, rel=1e-5)
    assert found.predicted_dominant == pytest.approx(-120 * scale, rel=1e-4)
    assert found.predicted_bulk == pytest.approx(-4 * scale, rel=1e-2)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"updates": jnp.ones(3)}, r"^updates has the shapes"),
        ({"learning_rate": -1.0}, "^learning_rate is -1.0; it must be a number, at"),
        ({"tol": 2.0}, "^tol is 2.0; it must be a number from 0 to 1"),
        ({"max_losses": 1}, "^max_losses is 1; it must be at least 2"),
    ],
)
def test_wrong_arguments_are_named(change, match):
    arguments = {"params": jnp.ones(2), "updates": jnp.ones(2)} | change
    with pytest.raises(ValueError, match=match):
        bulk_sgd.critical_sharpness(lambda x: jnp.sum(x**2), **arguments)


# Eigenvectors.


def subspace(vectors, values=None):
    """A subspace of dense rows, `{"a": …, "b": …}` like the parameters."""
    vectors = jnp.asarray(vectors)
    values = np.arange(len(vectors), 0, -1.0) if values is None else values
    leaves = {"a": vectors[:, :4].reshape(-1, 2, 2), "b": vectors[:, 4:]}
    blank = jnp.zeros(len(vectors))
    return bulk_sgd.Subspace(
        jnp.asarray(values), leaves, blank, jnp.array(True), jnp.int32(0)
    )


def orthonormal(seed, count=3, size=10):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.standard_normal((size, count)))[0].T


def test_displacement_compares_vectors_of_the_same_place(x64):
    before, after = orthonormal(0), orthonormal(1)
    order = [2, 0, 1]  # of the second solver, which says so by its eigenvalues
    shuffled = subspace(-after[order], np.array([3.0, 2.0, 1.0])[order])
    found = bulk_sgd.displacement(subspace(before), shuffled)
    expected = 1 - np.abs(np.sum(before * after, axis=1))
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-12)
    P, Q = (helpers.projector(x) for x in (before, after))
    assert found.subspace == pytest.approx(1 - np.trace(P @ Q) / 3, rel=1e-12)
    still = bulk_sgd.displacement(subspace(before), subspace(-before))
    np.testing.assert_allclose(still.vectors, 0, atol=1e-14)
    assert still.subspace == pytest.approx(0, abs=1e-14)
    # In factors of full rank it is the same.
    factored = [subspace(x).factored(2)[0] for x in (before, after)]
    again = bulk_sgd.displacement(*factored)
    np.testing.assert_allclose(again.vectors, expected, rtol=1e-10)


def test_missing_vectors_have_no_displacement(x64):
    before, after = orthonormal(0), orthonormal(1)
    # Of two negative eigenvalues and a missing one, which is 0, the last is missing.
    gone = subspace(after * [[0], [1], [1]], [0.0, -1.0, -2.0])
    found = bulk_sgd.displacement(subspace(before), gone)
    expected = 1 - np.abs(np.sum(before[:2] * after[1:], axis=1))
    np.testing.assert_allclose(found.vectors[:2], expected, rtol=1e-12)
    assert np.isnan(found.vectors[2])
    # Of the two directions that are left, how much is outside of the three before.
    P, Q = helpers.projector(before), helpers.projector(after[1:])
    assert found.subspace == pytest.approx(1 - np.trace(P @ Q) / 2, rel=1e-12)
    fewer = subspace(before * [[1], [0], [1]], [3.0, 0.0, 1.0])
    assert bulk_sgd.displacement(subspace(before), fewer).subspace < 1e-14
    empty = bulk_sgd.displacement(subspace(0 * before), subspace(after))
    assert np.isnan([*empty.vectors, empty.subspace]).all()


@pytest.mark.parametrize(
    ("after", "match"),
    [
        (subspace(orthonormal(1, 2)), "^after has 2 rows; it must have 3, as before"),
        (subspace(orthonormal(1, size=9)), r"^eigenvectors of after has the shapes .*"),
        (np.ones(3), "^after is of type ndarray; it must be a bulk_sgd.Subspace"),
    ],
)
def test_subspaces_of_another_form_are_named(after, match):
    with pytest.raises(ValueError, match=match):
        bulk_sgd.displacement(subspace(orthonormal(0)), after)


def test_localization_is_one_for_random_vectors_and_n_thirds_for_one(x64):
    vectors = orthonormal(2, 4)
    found = bulk_sgd.localization(subspace(vectors))
    np.testing.assert_allclose(found, 10 / 3 * np.sum(vectors**4, 1), rtol=1e-12)
    one = np.eye(10)[:2] * [[0], [1]]
    found = bulk_sgd.localization(subspace(one, [0.0, -1.0]))
    assert found[0] == pytest.approx(10 / 3)
    assert np.isnan(found[1])
    cut, _ = subspace(vectors).factored(1)
    dense_rows = subspace(rows(basis.dense(cut.eigenvectors)))
    found, expected = map(bulk_sgd.localization, (cut, dense_rows))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    random = np.random.default_rng(3).standard_normal((200, 500))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    # The mean over directions is n / (n + 2); each scatters by about √(32 / 3n).
    mean = np.mean(bulk_sgd.localization(subspace(random)))
    assert mean == pytest.approx(500 / 502, abs=4 * (32 / 1500 / 200) ** 0.5)
