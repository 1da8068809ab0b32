import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    cnn,
    cross_entropy,
    dense,
    equations,
    flat,
    mlp,
    objective,
    squared_error,
)
from jax.flatten_util import ravel_pytree

import bulk_sgd
from bulk_sgd.curvature import hessian
from bulk_sgd.curvature.operators import linearize

pytestmark = pytest.mark.usefixtures("strict_ranks")

PROBLEMS = {
    "mlp, squared error": (mlp(), squared_error),
    "mlp, cross-entropy": (mlp(), cross_entropy),
    "cnn, cross-entropy": (cnn(), cross_entropy),
    "relu mlp, cross-entropy": (mlp(jax.nn.relu), cross_entropy),
}
KINDS = ("hessian", "gauss_newton", "functional_hessian")
# float64 rounds to 2e-16; a second derivative through a network of this size loses a
# few digits more, to 1e-14. What a wrong formula does is of order 1.
EXACT = 1e-12


@functools.cache
def matrix(kind, problem, size=None):
    """The matrix of a matvec under test, in float64."""
    made, params = objective(*PROBLEMS[problem], size)
    return dense(getattr(bulk_sgd, kind)(made, params), params)


@functools.cache
def reference(problem):
    """H, G and F by their definitions, from dense Jacobians and Hessians."""
    made, params = objective(*PROBLEMS[problem])
    vector, unravel = ravel_pytree(params)

    @jax.jit
    def parts(vector):
        outputs = lambda v: made.model_fn(unravel(v), made.inputs)
        losses = lambda f: jnp.mean(made.loss_fn(f, made.targets))
        f = outputs(vector)
        jacobian = jax.jacrev(outputs)(vector)
        return {
            "hessian": jax.hessian(lambda v: losses(outputs(v)))(vector),
            "gauss_newton": jnp.einsum(
                "aip,aibj,bjq->pq", jacobian, jax.hessian(losses)(f), jacobian
            ),
            "functional_hessian": jnp.einsum(
                "ai,aipq->pq", jax.grad(losses)(f), jax.hessian(outputs)(vector)
            ),
        }

    return {kind: np.asarray(part) for kind, part in parts(vector).items()}


def assert_close(actual, expected, scale=None):
    scale = np.abs(expected if scale is None else scale).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT * scale)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_products_equal_the_dense_definition(x64, problem, kind):
    expected = reference(problem)
    assert_close(matrix(kind, problem), expected[kind], scale=expected["hessian"])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_hessian_splits_into_gauss_newton_and_functional_hessian(x64, problem):
    whole, outer, functional = (matrix(kind, problem) for kind in KINDS)
    assert_close(outer + functional, whole)
    # The split is not trivial.
    assert min(np.abs(outer).max(), np.abs(functional).max()) > 1e-2


def test_logistic_regression_has_its_closed_form(x64):
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((9, 4)), rng.standard_normal(4)
    labels = jnp.asarray(rng.integers(0, 2, 9), float)

    def loss_fn(logits, labels):
        return jnp.logaddexp(0, logits) - labels * logits

    made = bulk_sgd.Objective(lambda w, x: x @ w, loss_fn, jnp.asarray(x), labels)
    weights = jnp.asarray(weights)
    probability = 1 / (1 + np.exp(-x @ weights))
    expected = (x.T * (probability * (1 - probability))) @ x / 9
    assert_close(dense(bulk_sgd.hessian(made, weights), weights), expected)
    assert_close(dense(bulk_sgd.gauss_newton(made, weights), weights), expected)
    # A linear model has no second derivative.
    assert not dense(bulk_sgd.functional_hessian(made, weights), weights).any()


def test_functional_hessian_of_a_relu_network_has_no_diagonal(x64):
    functional = matrix("functional_hessian", "relu mlp, cross-entropy")
    np.testing.assert_array_equal(np.diag(functional), 0)
    assert np.linalg.norm(functional) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3])  # 7 examples: 3 leaves a ragged last one
def test_microbatches_equal_the_full_batch(x64, kind, size):
    problem = "mlp, cross-entropy"
    assert_close(matrix(kind, problem, size), matrix(kind, problem))


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_bounded_by_a_microbatch(kind):
    def model_fn(params, x):
        return jnp.tanh(jnp.tanh(x @ params) @ params)

    params, data = jnp.ones((16, 16)), jnp.ones((512, 16))

    def temporary_bytes(size):
        made = bulk_sgd.Objective(model_fn, squared_error, data, data, size)
        matvec = getattr(bulk_sgd, kind)(made, params)
        compiled = hessian._apply.lower(matvec, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    # 16 of 512 examples: activations shrink 32 times. A quarter leaves room for the
    # vectors themselves.
    assert temporary_bytes(16) < temporary_bytes(None) / 4


@pytest.mark.parametrize(
    ("kind", "size"), [("hessian", None), ("gauss_newton", None), ("hessian", 3)]
)
def test_linearize_gives_the_same_product(x64, kind, size):
    made, params = objective(*PROBLEMS["mlp, cross-entropy"], size)
    matvec = getattr(bulk_sgd, kind)(made, params)

    @jax.jit
    def both(matvec, vector):
        return matvec(vector), linearize(matvec)(vector)

    called, shared = both(matvec, params)
    assert_close(flat(shared), flat(called))


@pytest.mark.parametrize("mode", ["auto", "reverse_over_reverse"])
def test_linearize_runs_the_primal_pass_once(mode):
    calls = []

    def value_fn(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum(x**4)

    @jax.jit
    def two_products(params):
        matvec = bulk_sgd.hessian(value_fn, params, mode=mode).linearize()
        return matvec(matvec(params))

    # 12 x² twice, at x = 1.
    np.testing.assert_array_equal(two_products(jnp.ones(3)), 144)
    jax.effects_barrier()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_params_take_float32_vectors(kind):
    problem = PROBLEMS["mlp, squared error"]
    made, params = objective(*problem, dtype=jnp.float32)
    exact = getattr(bulk_sgd, kind)(made, params)(params)
    made, narrow = objective(*problem, dtype=jnp.bfloat16)
    product = getattr(bulk_sgd, kind)(made, narrow)(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(product)} == {jnp.dtype("float32")}
    # bfloat16 keeps 8 bits, 4e-3; the network amplifies it some ten times.
    error = np.linalg.norm(flat(product) - flat(exact)) / np.linalg.norm(flat(exact))
    assert error < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_other_params_and_data_share_one_program(kind):
    def model_fn(params, x):
        return jnp.tanh(x @ params)

    def product(seed):
        key = jax.random.key(seed)
        params, x, y = (
            jax.random.normal(key, shape) for shape in ((3, 2), (4, 3), (4, 2))
        )
        made = bulk_sgd.Objective(model_fn, squared_error, x, y)
        return getattr(bulk_sgd, kind)(made, params)(params)

    first = product(0)
    before = hessian._apply._cache_size()
    second = product(1)
    assert hessian._apply._cache_size() == before
    assert np.abs(flat(first) - flat(second)).max() > 1e-3


def test_kinds_of_curvature_never_share_a_program():
    # See `operators.Wrapped`: one jit cache serves all operators.
    made, params = objective(*PROBLEMS["mlp, squared error"])
    matvecs = [getattr(bulk_sgd, kind)(made, params) for kind in KINDS]
    structures = [jax.tree.structure(matvec) for matvec in matvecs]
    assert all(a != b for a, b in itertools.combinations(structures, 2))


def test_any_scalar_function_has_a_hessian(x64):
    value_fn = lambda p: p["a"] ** 3 * jnp.sum(jnp.sin(p["b"]))
    params = {"a": jnp.asarray(0.5), "b": jnp.array([0.1, 0.7])}
    a, b = 0.5, np.array([0.1, 0.7])
    expected = np.zeros((3, 3))
    expected[0, 0] = 6 * a * np.sin(b).sum()
    expected[0, 1:] = expected[1:, 0] = 3 * a**2 * np.cos(b)
    expected[[1, 2], [1, 2]] = -(a**3) * np.sin(b)
    assert_close(dense(bulk_sgd.hessian(value_fn, params), params), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [mlp, cnn])
def test_every_product_has_highest_precision(kind, network):
    made, params = objective(network(), squared_error, 3, dtype=jnp.float32)
    matvec = getattr(bulk_sgd, kind)(made, params)
    highest = jax.lax.Precision.HIGHEST
    found = [
        equation.params["precision"]
        for equation in equations(jax.make_jaxpr(matvec)(params))
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert found
    assert all(p == (highest, highest) for p in found)


def test_a_precision_set_within_the_loss_stands():
    made, params = objective(mlp(), squared_error, 3, dtype=jnp.float32)

    def loss(params):
        with jax.default_matmul_precision("tensorfloat32"):
            return made(params)

    def product(params):
        with jax.default_matmul_precision("highest"):
            return linearize(bulk_sgd.hessian(loss, params))(params)

    high = jax.lax.Precision.HIGH
    found = [
        equation.params["precision"]
        for equation in equations(jax.make_jaxpr(product)(params))
        if equation.primitive.name == "dot_general"
    ]
    assert len(found) > 4  # forwards, backwards, and the derivative of both
    assert all(p == (high, high) for p in found)


@pytest.mark.parametrize(
    ("value_fn", "got"),
    [
        (lambda x: x, r"float32\[3\]"),
        (lambda x: jnp.sum(x)[None], r"float32\[1\]"),
        (lambda x: (jnp.sum(x), jnp.sum(x)), r"float32\[\], float32\[\]"),
        (lambda x: jnp.sum(x).astype(int), r"int32\[\]"),
        (lambda x: jnp.sum(x) * 1j, r"complex64\[\]"),
        (lambda x: None, "nothing"),
    ],
)
def test_value_fn_must_return_a_real_scalar(value_fn, got):
    with pytest.raises(TypeError, match=f"value_fn returned {got}; .* real scalar"):
        bulk_sgd.hessian(value_fn, jnp.ones(3))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_parts_of_the_hessian_need_an_objective(kind):
    with pytest.raises(TypeError, match=f"{kind} needs .*Objective.*got function"):
        getattr(bulk_sgd, kind)(lambda x: jnp.sum(x), jnp.ones(3))
