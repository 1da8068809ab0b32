"""Which numbers and functions are scales of a transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import exact_solver
from small_transforms import PARAMS, transform, update

import bulk_sgd

NEWTON = bulk_sgd.spectral_filter(lambda lam: 1 / (1 + lam))
NUMBER_OR_SCHEDULE = "it must be a finite number or a schedule of the step"


@pytest.mark.parametrize("name", ["dominant_scale", "bulk_scale"])
@pytest.mark.parametrize(
    "value", [None, "0.5", float("nan"), float("inf"), 1j, np.ones(2), [1.0]]
)
def test_scale_that_is_no_number_and_no_function(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is .*; {NUMBER_OR_SCHEDULE}"):
        transform(**{name: value})


@pytest.mark.parametrize("value", [None, "0.5", float("nan"), np.ones(2)])
@pytest.mark.parametrize("path", ["bulk", "cross"])
def test_alpha_that_is_no_number_and_no_function(path, value):
    with pytest.raises(ValueError, match=rf"^alpha is .*; {NUMBER_OR_SCHEDULE}"):
        bulk_sgd.interpolated_sgd(0.1, 2, value, path)


def test_only_the_dominant_scale_filters_eigenvalues():
    refusal = rf"is a spectral filter; {NUMBER_OR_SCHEDULE}"
    with pytest.raises(ValueError, match=rf"^bulk_scale {refusal}"):
        transform(bulk_scale=NEWTON)
    with pytest.raises(ValueError, match=rf"^alpha {refusal}"):
        bulk_sgd.interpolated_sgd(0.1, 2, NEWTON)
    transform(dominant_scale=NEWTON)
    with pytest.raises(ValueError, match=r"^fn is 2; it must be a function"):
        bulk_sgd.spectral_filter(2)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda eigenvalues: 1 / eigenvalues, "is a function of 'eigenvalues', but"),
        (lambda lam: 1 / lam, "is a function of 'lam', but"),
        (lambda s: s / s[0], "fails on a scalar step"),
        (lambda s: s / len(s), "fails on a scalar step"),
    ],
)
def test_plain_function_of_eigenvalues_is_no_schedule(fn, message):
    for name in "dominant_scale", "bulk_scale":
        with pytest.raises(ValueError, match=f"^{name} {message}.*spectral_filter"):
            transform(**{name: fn})
    with pytest.raises(ValueError, match=r"^learning_rate"):
        bulk_sgd.bulk_sgd(fn, 2)


def test_schedule_may_branch_on_a_step_outside_of_jit():
    out, _ = update(transform(dominant_scale=lambda t: 2.0 if t < 1 else 0.0))
    np.testing.assert_allclose(out["w"][1, 1:], 2 * PARAMS["w"][1, 1:], rtol=1e-5)


@pytest.mark.parametrize("value", [0, np.float32(0.5), jnp.float32(2), True])
def test_numbers_of_any_kind_are_scales(value):
    scaled, _ = update(transform(dominant_scale=value, bulk_scale=value))
    for found, leaf in zip(jax.tree.leaves(scaled), jax.tree.leaves(PARAMS)):
        np.testing.assert_allclose(found, float(value) * leaf, atol=1e-6)
    # Of three directions the first two are the subspace, which α scales.
    tx = bulk_sgd.interpolated_sgd(0.1, 2, value, solver=exact_solver())
    plane = lambda x: jnp.sum(jnp.array([3.0, 2, 1]) * x**2)
    found, _ = update(tx, jnp.ones(3), plane)
    np.testing.assert_allclose(found, [-0.1 * value] * 2 + [-0.1], atol=1e-6)


def test_traced_scales_must_be_scalars():
    jax.jit(lambda a: transform(bulk_scale=a).init(PARAMS))(0.5)
    with pytest.raises(ValueError, match=r"^bulk_scale is"):
        jax.jit(lambda a: transform(bulk_scale=a).init(PARAMS))(jnp.ones(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dominant_scale": bulk_sgd.spectral_filter(lambda x: jnp.ones(5))},
            r"dominant_scale returned float32\[5\]; .*per eigenvalue, \(2,\)",
        ),
        (
            {"dominant_scale": bulk_sgd.spectral_filter(lambda x: x[:, None])},
            r"dominant_scale returned float32\[2, 1\]",
        ),
        (
            {"bulk_scale": lambda step: jnp.ones(2)},
            r"bulk_scale returned float32\[2\]; it must return a scalar",
        ),
        ({"bulk_scale": lambda step: None}, "bulk_scale returned nothing"),
    ],
)
def test_functions_that_return_another_shape(options, message):
    with pytest.raises(TypeError, match=message):
        transform(**options)


def test_filter_may_return_one_factor_for_all():
    out, _ = update(transform(dominant_scale=bulk_sgd.spectral_filter(lambda x: 1.0)))
    np.testing.assert_array_equal(out["b"], PARAMS["b"])
