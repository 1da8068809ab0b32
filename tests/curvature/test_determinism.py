import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import cross_entropy, mlp, objective, squared_error

import bulk_sgd

INPUTS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
TARGETS = np.random.default_rng(1).standard_normal((6, 2)).astype(np.float32)
CHANGES = r"changes from call to call.*relative difference.*Common causes: dropout"


def loader(order):
    """Batches of a data set as a loader gives them, in an order of its own per call."""

    def value_fn(params):
        chosen = next(order)
        losses = squared_error(jnp.tanh(INPUTS[chosen] @ params), TARGETS[chosen])
        return jnp.mean(losses)

    return value_fn


def permutations(size):
    rng = np.random.default_rng(0)
    while True:
        yield rng.permutation(6)[:size]


class Network(nnx.Module):
    """One hidden layer, with noise or with averages."""

    def __init__(self, dropout=0.0, normalised=False):
        rngs = nnx.Rngs(0)
        self.hidden = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs) if normalised else lambda x: x
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(self.norm(jnp.tanh(self.hidden(x)))))


def network_loss(network, evaluate):
    """The loss as users of flax NNX write it, and params."""
    if evaluate:
        network.eval()
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def value_fn(params):
        outputs = nnx.merge(graph, params, rest)(INPUTS)
        return jnp.mean(squared_error(outputs, TARGETS))

    return value_fn, params


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_objective_passes(size, dtype):
    made, params = objective(mlp(), cross_entropy, size, dtype)
    assert bulk_sgd.check_deterministic(made, params) is None


def test_dropout_is_refused_until_it_is_off():
    with pytest.raises(ValueError, match=f"value_fn {CHANGES}"):
        bulk_sgd.check_deterministic(*network_loss(Network(dropout=0.5), False))
    bulk_sgd.check_deterministic(*network_loss(Network(dropout=0.5), True))


def test_moving_averages_of_batches_are_refused():
    network = Network(normalised=True)

    def value_fn(params):  # updates the averages, and then uses them
        network.train()
        network(INPUTS)
        network.eval()
        nnx.update(network, params)
        return jnp.mean(squared_error(network(INPUTS), TARGETS))

    with pytest.raises(ValueError, match=f"value_fn {CHANGES}.*batch normalisation"):
        bulk_sgd.check_deterministic(value_fn, nnx.state(network, nnx.Param))


def test_a_loader_that_gives_another_batch_is_refused():
    with pytest.raises(ValueError, match=f"value_fn {CHANGES}.*a loader"):
        bulk_sgd.check_deterministic(loader(permutations(3)), jnp.ones((3, 2)))


def test_a_loader_that_shuffles_the_same_data_passes():
    shuffled = loader(permutations(6))
    assert bulk_sgd.check_deterministic(shuffled, jnp.ones((3, 2))) is None


def test_curvature_that_changes_under_equal_values_is_refused():
    turns = itertools.cycle([1.0, 2.0])
    with pytest.raises(ValueError, match=f"the Hessian of value_fn {CHANGES}"):
        bulk_sgd.check_deterministic(
            lambda x: 1 + next(turns) * jnp.sum(x**2), jnp.zeros(3)
        )


def noisy(size):
    """A loss whose every call is off by a relative error up to `size`."""
    rng = np.random.default_rng(0)

    def value_fn(x):
        return (1 + size * rng.uniform(-1, 1)) * jnp.sum(jnp.cosh(x))

    return value_fn


def test_rounding_in_another_order_passes_and_noise_does_not():
    params = jnp.linspace(-1, 1, 20)
    # A sum of some thousand terms in another order: float32's 1e-7 times √1000.
    bulk_sgd.check_deterministic(noisy(4e-6), params)
    with pytest.raises(ValueError, match=CHANGES):
        bulk_sgd.check_deterministic(noisy(1e-2), params)
    bulk_sgd.check_deterministic(noisy(1e-2), params, tol=0.1)
    with pytest.raises(ValueError, match=CHANGES):
        bulk_sgd.check_deterministic(noisy(4e-6), params, tol=1e-7)


def test_a_loss_of_nearly_nothing_may_round():
    rng = np.random.default_rng(0)
    params = jnp.zeros(5)

    def value_fn(x):  # (f − y)² with f ≈ 1 off by its rounding, at f − y = 1e-4
        return jnp.sum((x + 1e-4 + 1e-7 * rng.uniform()) ** 2)

    assert bulk_sgd.check_deterministic(value_fn, params) is None


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(
    lambda x: (jnp.round(x), None), lambda _, cotangent: (cotangent,)
)


def test_gradients_that_are_none_of_a_scalar_are_refused():
    def value_fn(x):
        return jnp.sum(straight_through(3 * x[0]) * jnp.sin(3 * x[1]))

    params = jnp.linspace(0, 1, 8).reshape(2, 4)
    with pytest.raises(ValueError, match=r"not symmetric.*straight-through"):
        bulk_sgd.check_deterministic(value_fn, params)
    bulk_sgd.check_deterministic(lambda x: jnp.sum(x[0] * jnp.sin(x[1])), params)


def test_finite_differences_are_symmetric_enough():
    @jax.custom_vjp
    def tanh(x):
        return jnp.tanh(x)

    def backward(x, u):
        fn = lambda x, u: u * (1 - np.tanh(x) ** 2)
        return (jax.pure_callback(fn, x, x, u, vmap_method="broadcast_all"),)

    tanh.defvjp(lambda x: (tanh(x), x), backward)
    made, params = objective(mlp(tanh), cross_entropy, dtype=jnp.float32)
    with pytest.warns(UserWarning, match="finite_differences"):
        bulk_sgd.check_deterministic(made, params)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_constants_pass_whatever_they_are(value):
    for loss in (lambda x: value + 0 * jnp.sum(x), lambda x: value * jnp.sum(x**2)):
        assert bulk_sgd.check_deterministic(loss, jnp.ones(3)) is None


@pytest.mark.parametrize("second", [np.nan, np.inf])
def test_a_loss_that_is_finite_now_and_then_is_refused(second):
    turns = itertools.chain([1.0, second], itertools.repeat(1.0))
    with pytest.raises(ValueError, match=CHANGES):
        bulk_sgd.check_deterministic(lambda x: next(turns) * jnp.sum(x), jnp.ones(3))


def test_it_cannot_be_called_inside_jit():
    with pytest.raises(ValueError, match=r"params are traced.*outside of jit"):
        jax.jit(lambda x: bulk_sgd.check_deterministic(jnp.sum, x))(jnp.ones(3))


@pytest.mark.parametrize("params", [jnp.arange(3), {}])
def test_params_must_be_floats(params):
    with pytest.raises(ValueError, match="params"):
        bulk_sgd.check_deterministic(lambda x: 0.0, params)


def test_the_value_must_be_a_scalar():
    with pytest.raises(TypeError, match="value_fn returned float32"):
        bulk_sgd.check_deterministic(lambda x: x, jnp.ones(3))
