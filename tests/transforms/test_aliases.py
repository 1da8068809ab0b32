import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver, quadratic, symmetric, top

import bulk_sgd

pytestmark = pytest.mark.usefixtures("strict_ranks")

RANK, RATE, ALPHA = 2, 0.1, 0.3
MATRIX = symmetric([10, 6, 1, 0.5, 0, -20])
P = top(MATRIX, RANK)[1]
LOSS = quadratic(MATRIX)
X = np.random.default_rng(0).standard_normal(6)
GRADIENT = MATRIX @ X


def update(tx, steps=1):
    """The update at X of the last of some steps that do not move, in float64."""

    @jax.jit
    def run(x):
        state = tx.init(x)
        for _ in range(steps):
            gradient = jax.grad(LOSS)(x)
            out, state = tx.update(gradient, state, x, value_fn=LOSS)
        return out

    return np.asarray(run(jnp.asarray(X)))


def scaled(a, b):
    return -RATE * (a * P @ GRADIENT + b * (GRADIENT - P @ GRADIENT))


def interpolated(path, alpha=ALPHA, rate=RATE):
    return bulk_sgd.interpolated_sgd(rate, RANK, alpha, path, solver=exact_solver())


def bulk(rate=RATE, **options):
    return bulk_sgd.bulk_sgd(rate, RANK, solver=exact_solver(), **options)


def dom(rate=RATE, **options):
    return bulk_sgd.dom_sgd(rate, RANK, solver=exact_solver(), **options)


# float64 rounds to 1e-16, and numbers here go up to 20.
CLOSE = {"rtol": 0, "atol": 1e-13}


@pytest.mark.parametrize(
    ("make", "a", "b"),
    [
        (bulk, 0, 1),
        (dom, 1, 0),
        (lambda: interpolated("bulk"), ALPHA, 1),
        (lambda: interpolated("dom"), 1, ALPHA),
        (lambda: interpolated("cross"), ALPHA, 1 - ALPHA),
    ],
    ids=["bulk_sgd", "dom_sgd", "bulk path", "dom path", "cross path"],
)
def test_updates_equal_the_dense_formula(x64, make, a, b):
    np.testing.assert_allclose(update(make()), scaled(a, b), **CLOSE)


@pytest.mark.parametrize(
    ("path", "at_zero", "at_one"),
    [
        ("bulk", (0, 1), (1, 1)),
        ("dom", (1, 0), (1, 1)),
        ("cross", (0, 1), (1, 0)),
    ],
)
def test_paths_join_the_methods_that_they_name(path, at_zero, at_one):
    assert bulk_sgd.path_scales(path, 0.0) == at_zero
    assert bulk_sgd.path_scales(path, 1.0) == at_one
    traced = jax.jit(lambda alpha: bulk_sgd.path_scales(path, alpha))(0.0)
    assert tuple(map(float, traced)) == at_zero


def test_default_path_is_the_bulk_path(x64):
    tx = bulk_sgd.interpolated_sgd(RATE, RANK, ALPHA, solver=exact_solver())
    np.testing.assert_allclose(update(tx), scaled(ALPHA, 1), **CLOSE)


@pytest.mark.parametrize("path", ["bulk", "dom"])
def test_sgd_end_of_a_path_is_sgd_bit_for_bit(path):
    tx = interpolated(path, 1.0)
    np.testing.assert_array_equal(update(tx), update(optax.sgd(RATE)))


def test_rate_and_position_may_be_schedules(x64):
    rate = optax.piecewise_constant_schedule(1.0, {1: RATE})
    alpha = optax.piecewise_constant_schedule(0.0, {})
    position = lambda step: alpha(step) + ALPHA * step
    # At step 1, the second.
    tx = interpolated("cross", position, rate)
    np.testing.assert_allclose(update(tx, 2), scaled(ALPHA, 1 - ALPHA), **CLOSE)
    np.testing.assert_allclose(update(bulk(rate), 2), scaled(0, 1), **CLOSE)


def test_options_reach_the_transform(x64):
    np.testing.assert_allclose(update(bulk(switch=1)), scaled(1, 1), **CLOSE)
    np.testing.assert_allclose(update(dom(switch=1), 2), scaled(1, 0), **CLOSE)
    with pytest.raises(TypeError, match="refresh_evry"):
        bulk_sgd.bulk_sgd(RATE, RANK, refresh_evry=2)


@pytest.mark.parametrize(
    "fn",
    [
        bulk_sgd.bulk_sgd,
        bulk_sgd.dom_sgd,
        bulk_sgd.interpolated_sgd,
        bulk_sgd.project_bulk,
        bulk_sgd.project_dominant,
    ],
)
def test_signatures_show_the_options(fn):
    parameters = inspect.signature(fn).parameters
    whole = inspect.signature(bulk_sgd.scale_by_subspace).parameters
    options = {k: p for k, p in whole.items() if p.kind is p.KEYWORD_ONLY}
    assert options.items() <= parameters.items()
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bulk(-0.1), r"learning_rate is -0\.1; it must be a number, at least"),
        (lambda: dom(float("nan")), "learning_rate is nan; it must be a number"),
        (lambda: interpolated("bulk", rate=-1), "learning_rate is -1; it must be"),
        (lambda: interpolated("flat"), "path is 'flat'; .*one of bulk, cross, dom"),
        (lambda: interpolated("flat", lambda step: 0.5), "path is 'flat'; it must be"),
        (lambda: bulk_sgd.path_scales("", 0), "path is ''; it must be one of"),
        (lambda: bulk_sgd.bulk_sgd(RATE, 0), "rank is 0; it must be at least 1"),
        (lambda: bulk(refresh_every=0), "refresh_every is 0; it must be at least 1"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
