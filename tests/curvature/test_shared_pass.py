"""The loss, gradient and Hessian products that share one pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import cross_entropy, dense, flat, mlp, objective
from transform_runs import EXACT

import bulk_sgd

MODES = {
    ("forward_over_reverse", None): 1e-13,
    ("reverse_over_reverse", None): 1e-13,
    ("finite_differences", None): 1e-8,  # (4 ε)^⅔
    ("forward_over_reverse", 3): 1e-13,
}


@pytest.mark.parametrize(("mode", "size"), MODES)
def test_all_three_agree_with_the_separate_functions(x64, mode, size):
    loss, params = objective(mlp(), cross_entropy, size)
    make = lambda params: bulk_sgd.value_grad_and_matvec(loss, params, mode=mode)
    value, grads = jax.jit(lambda params: make(params)[:2])(params)
    np.testing.assert_allclose(value, loss(params), rtol=1e-15)
    np.testing.assert_allclose(flat(grads), flat(jax.grad(loss)(params)), **EXACT)
    found = dense(lambda v: make(params)[2](v), params)
    matrix = dense(bulk_sgd.hessian(loss, params), params)
    np.testing.assert_allclose(found, matrix, rtol=0, atol=MODES[mode, size])


def scanned(params):
    """The loss of eight residual layers in a loop."""
    layer = lambda h, w: (h + jnp.tanh(h @ w), None)
    return jnp.sum(jax.lax.scan(layer, jnp.ones((64, 16)), params)[0] ** 2)


def test_the_gradient_of_layers_in_a_loop_is_computed_once():
    params = jnp.ones((8, 16, 16)) / 16

    def flops(make):
        program = jax.jit(lambda params, v: [x(v) for x in make(params)])
        return program.lower(params, params).compile().cost_analysis()["flops"]

    def alone(params):
        grads = jax.grad(scanned)(params)
        return [lambda v: grads]

    def apart(params):
        return [*alone(params), bulk_sgd.hessian(scanned, params).linearize()]

    def together(params):
        _, grads, matvec = bulk_sgd.value_grad_and_matvec(scanned, params)
        return [lambda v: grads, matvec]

    one, two, shared = map(flops, (alone, apart, together))
    assert shared < two - 0.5 * one


@pytest.mark.parametrize("way", ["plain", "mask", "preconditioner"])
def test_a_transform_takes_the_products_in_place_of_the_loss(x64, way):
    loss, params = objective(mlp(), cross_entropy)
    mask = {"hidden": True, "out": {"w": True, "b": False}} if way == "mask" else None
    solver = bulk_sgd.lanczos(tol=1e-10)
    tx = bulk_sgd.project_bulk(3, mask=mask, solver=solver)
    more = {}
    if way == "preconditioner":
        more["preconditioner"] = jax.tree.map(lambda x: 1 + x**2, params)

    @jax.jit
    def both(params):
        _, grads, matvec = bulk_sgd.value_grad_and_matvec(loss, params)
        update = lambda **curved: tx.update(
            grads, tx.init(params), params, **curved, **more
        )
        return update(matvec=matvec), update(value_fn=loss)

    (found, state), (expected, _) = both(params)
    assert state.subspace.converged
    # Two programs of one solve: an error of 1e-10 in the vectors, if they round apart.
    np.testing.assert_allclose(flat(found), flat(expected), rtol=0, atol=1e-8)
