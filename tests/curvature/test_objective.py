import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, mlp, objective, squared_error

import bulk_sgd
from bulk_sgd.curvature.hessian import CURVATURES

pytestmark = pytest.mark.usefixtures("strict_ranks")

EXAMPLES = 7
# 1 and 7 divide the examples, 3 leaves a ragged last one, 20 exceeds them.
SIZES = (1, 3, 7, 20)


def scaled(weight, x):
    return weight * x


def half_square(outputs, targets):
    return 0.5 * (outputs - targets) ** 2


def line(microbatch_size=None):
    return bulk_sgd.Objective(
        scaled, half_square, jnp.arange(5.0), jnp.ones(5), microbatch_size
    )


def test_value_is_the_mean_over_examples():
    # (2x - 1)² / 2 at x = 0 … 4: (1 + 1 + 9 + 25 + 49) / 2 / 5.
    assert float(line()(jnp.float32(2))) == 8.5


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda f, y: jnp.mean(half_square(f, y)),
        lambda f, y: jnp.stack([half_square(f, y)] * 3, axis=1),
    ],
    ids=["mean", "further axes"],
)
@pytest.mark.parametrize("size", [None, 2])
def test_loss_may_be_a_mean_or_have_further_axes(loss_fn, size):
    made = bulk_sgd.Objective(scaled, loss_fn, jnp.arange(5.0), jnp.ones(5), size)
    # 8.5 in float32 to rounding: a mean of 3 equal terms is not exact.
    np.testing.assert_allclose(made(jnp.float32(2)), 8.5, rtol=1e-6)


@jax.jit
def value_and_products(made, params):
    products = [curvature(made, params)(params) for curvature in CURVATURES.values()]
    return made(params), products


@pytest.mark.parametrize(("size", "groups"), [(8, 4), (4, 2), (8, 2), (4, 4), (12, 5)])
def test_groups_of_microbatches_equal_the_full_batch(x64, size, groups):
    model, loss_fn = mlp(), squared_error
    full, params = objective(model, loss_fn)
    repeat = lambda x: jnp.concatenate([x, x[:5]])  # 12 examples, of which 8 leave 4
    full = dataclasses.replace(
        full, inputs=repeat(full.inputs), targets=repeat(full.targets)
    )
    split = dataclasses.replace(full, microbatch_size=size, num_groups=groups)
    value, products = value_and_products(full, params)
    split_value, split_products = value_and_products(split, params)
    for found, expected in zip(map(flat, split_products), map(flat, products)):
        # As above.
        np.testing.assert_allclose(found, expected, atol=1e-13 * abs(expected).max())
    np.testing.assert_allclose(split_value, value, rtol=1e-13)


def test_groups_that_split_microbatches_unevenly_are_refused():
    for examples, size in ((8, 3), (7, 4)):
        made = bulk_sgd.Objective(
            scaled, half_square, jnp.ones(examples), jnp.ones(examples), size, 2
        )
        with pytest.raises(ValueError, match=f"is 2; .* {size}, .* {examples}"):
            made(jnp.float32(2))
    with pytest.raises(ValueError, match="num_groups is 0"):
        bulk_sgd.Objective(scaled, half_square, jnp.ones(4), jnp.ones(4), 2, 0)


@jax.jit
def value_and_gradient(made, params):
    return jax.value_and_grad(made)(params)


@pytest.mark.parametrize("size", SIZES)
def test_microbatches_equal_the_full_batch(x64, size):
    full, params = objective(mlp(), squared_error)
    split, _ = objective(mlp(), squared_error, size)
    value, gradient = value_and_gradient(full, params)
    split_value, split_gradient = value_and_gradient(split, params)
    # float64: 7 examples and 26 parameters leave a few units of 2e-16.
    np.testing.assert_allclose(split_value, value, rtol=1e-13)
    np.testing.assert_allclose(
        flat(split_gradient), flat(gradient), atol=1e-13 * abs(flat(gradient)).max()
    )


def test_gradient_memory_is_bounded_by_a_microbatch():
    def model_fn(params, x):
        return jnp.tanh(jnp.tanh(x @ params) @ params)

    def temporary_bytes(size):
        data = jnp.ones((512, 16))
        made = bulk_sgd.Objective(model_fn, squared_error, data, data, size)
        gradient = jax.jit(lambda made, params: jax.grad(made)(params))
        compiled = gradient.lower(made, jnp.ones((16, 16))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # 16 of 512 examples: activations shrink 32 times. A quarter leaves room for the
    # gradients themselves.
    assert temporary_bytes(16) < temporary_bytes(None) / 4


def test_data_pass_through_jit_as_arguments():
    value = jax.jit(lambda made, weight: made(weight))
    assert float(value(line(), jnp.float32(2))) == 8.5
    other = bulk_sgd.Objective(scaled, half_square, jnp.ones(5), jnp.ones(5))
    assert float(value(other, jnp.float32(2))) == 0.5
    assert value._cache_size() == 1
    assert not jax.make_jaxpr(value)(line(), jnp.float32(2)).consts


def test_inputs_and_targets_are_pytrees():
    def model_fn(weight, inputs):
        return {"sum": weight * (inputs["a"] + inputs["b"][0])}

    def loss_fn(outputs, targets):
        return outputs["sum"] * targets[0]

    made = bulk_sgd.Objective(
        model_fn,
        loss_fn,
        {"a": jnp.arange(3.0), "b": (jnp.ones(3),)},
        [jnp.array([1.0, 0.0, 2.0])],
        microbatch_size=2,
    )
    # (1·1 + 2·0 + 3·2) · 3 / 3.
    np.testing.assert_allclose(made(jnp.float32(3)), 7, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "is_split"), [(None, False), (1, True), (4, True), (5, False), (9, False)]
)
def test_is_split_only_if_a_microbatch_is_smaller_than_the_data(size, is_split):
    assert line(size).is_split is is_split
    assert line(size).num_examples == 5


def test_mean_over_microbatches_weights_parts_by_their_examples():
    traced = []

    def first_input(part):
        traced.append(part.num_examples)
        assert not part.is_split
        return {"first": part.inputs[0]}

    # Parts are 0 and 2, 1 and 3, 4; the last has one example: (2·0 + 2·1 + 1·4) / 5.
    mean = line(2).mean_over_microbatches(first_input)["first"]
    np.testing.assert_allclose(mean, 6 / 5, rtol=1e-6)
    # For its shapes, in the scan, and for the ragged part: not once per part.
    assert traced == [2, 2, 1]


def test_take_is_the_objective_of_some_examples():
    taken = line(2).take(jnp.array([3, 1]))
    assert not taken.is_split
    # (2·3 − 1)² / 2 and (2·1 − 1)² / 2, averaged.
    np.testing.assert_allclose(taken(jnp.float32(2)), 6.5, rtol=1e-6)


@pytest.mark.parametrize("size", [None, 2])
def test_reparametrize_composes_the_model(size):
    moved = line(size).reparametrize(lambda x: 2 * x)
    np.testing.assert_allclose(moved(jnp.float32(1)), 8.5, rtol=1e-6)
    assert isinstance(moved, bulk_sgd.Objective)
    assert moved.microbatch_size == size


@pytest.mark.parametrize(
    ("inputs", "targets", "shapes"),
    [
        (jnp.ones(5), jnp.ones(4), r"\[\(5,\), \(4,\)\]"),
        (jnp.ones((0, 2)), jnp.ones((0,)), r"\[\(0, 2\), \(0,\)\]"),
        (jnp.ones(()), jnp.ones(()), r"\[\(\), \(\)\]"),
        ((jnp.ones(3), jnp.ones(2)), jnp.ones(3), r"\[\(3,\), \(2,\), \(3,\)\]"),
    ],
)
def test_leading_axes_must_agree(inputs, targets, shapes):
    with pytest.raises(ValueError, match=f"common leading axis.*{shapes}"):
        bulk_sgd.Objective(scaled, half_square, inputs, targets)


@pytest.mark.parametrize("size", [0, -1])
def test_microbatch_size_must_be_positive(size):
    with pytest.raises(ValueError, match=f"microbatch_size is {size}; it must be"):
        line(size)


def test_take_from_numpy_data_with_traced_indices():
    objective = bulk_sgd.Objective(
        lambda w, x: x @ w, lambda f, y: (f - y) ** 2, np.eye(4), np.arange(4.0)
    )
    value = jax.jit(lambda i: objective.take(i)(jnp.zeros(4)))(jnp.array([1, 3]))
    assert float(value) == 5.0
