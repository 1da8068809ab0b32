import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from four_devices import RANK, python
from helpers import cross_entropy, dense, flat, mlp, objective, squared_error

import bulk_sgd
from bulk_sgd.curvature import second_derivatives
from bulk_sgd.curvature.operators import linearize

pytestmark = pytest.mark.usefixtures("strict_ranks")

KINDS = ("hessian", "gauss_newton", "functional_hessian")
EXACT = second_derivatives.FORWARD, second_derivatives.REVERSE


def kernel(how):
    """tanh as a kernel of one's own, with more and more derivatives missing."""

    def slope(x):
        return 1 - jnp.tanh(x) ** 2

    def on_host(fn, *args):
        shape = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
        call = lambda *args: np.asarray(fn(*args), args[0].dtype)
        return jax.pure_callback(call, shape, *args, vmap_method="broadcast_all")

    host_slope = lambda x: 1 - np.tanh(x) ** 2
    backward = {
        "slope on the host": lambda x, u: u * on_host(host_slope, x),
        "all on the host": lambda x, u: on_host(lambda x, u: u * host_slope(x), x, u),
    }.get(how, lambda x, u: u * slope(x))

    @jax.custom_vjp
    def tanh(x):
        return jnp.tanh(x)

    primal = jnp.tanh if how == "rule" else tanh  # a call of itself has no jvp
    forward = lambda x: (primal(x), x)
    tanh.defvjp(forward, lambda x, cotangent: (backward(x, cotangent),))
    return tanh


# By the name of the kernel: the modes that "auto" takes for H, G and F.
CHOSEN = {
    "plain": (second_derivatives.FORWARD,) * 3,
    "rule": (
        second_derivatives.FORWARD,
        second_derivatives.REVERSE,
        second_derivatives.FORWARD,
    ),
    "no jvp": (second_derivatives.REVERSE,) * 3,
    # Jᵀ u is linear in u and can be transposed all the same.
    "slope on the host": (
        second_derivatives.DIFFERENCES,
        second_derivatives.REVERSE,
        second_derivatives.DIFFERENCES,
    ),
    "all on the host": (second_derivatives.DIFFERENCES,) * 3,
}


def problem(how, size=None, dtype=None):
    activation = jnp.tanh if how == "plain" else kernel(how)
    return objective(mlp(activation), cross_entropy, size, dtype)


def tolerance(params):
    """What `central_difference` documents, with a factor of 30.

    Its derivatives of higher order are those of tanh at inputs and weights of size 1
    to 3, which a quarter of the length of the weights only roughly bounds.
    """
    epsilon = jnp.finfo(jax.tree.leaves(params)[0].dtype).eps
    return 30 * float(4 * epsilon) ** (2 / 3)


@functools.cache
def reference(kind):
    """The matrix for the plain network in float64, checked in test_hessian.py."""
    made, params = problem("plain")
    matvec = getattr(bulk_sgd, kind)(made, params, mode=second_derivatives.FORWARD)
    return dense(matvec, params)


def error(matrix, kind):
    expected = reference(kind)
    return np.abs(matrix - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize(
    "mode", [second_derivatives.REVERSE, second_derivatives.DIFFERENCES]
)
def test_every_mode_gives_the_same_matrix(x64, mode, size, kind):
    made, params = problem("plain", size)
    matrix = dense(getattr(bulk_sgd, kind)(made, params, mode=mode), params)
    # Rounding of float64 through a small network, as in test_hessian.py.
    assert error(matrix, kind) < (1e-12 if mode in EXACT else tolerance(params))


@pytest.mark.parametrize(
    ("how", "kind", "mode"),
    [(how, *pair) for how, modes in CHOSEN.items() for pair in zip(KINDS, modes)],
)
def test_auto_takes_the_first_mode_that_can_be_traced(x64, how, kind, mode):
    made, params = problem(how)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matvec = getattr(bulk_sgd, kind)(made, params)
    assert matvec.mode == mode
    said = [str(w.message) for w in caught]
    assert len(said) == (mode != second_derivatives.FORWARD)
    for text in said:
        assert f"bulk_sgd.{kind} differentiates by {mode}" in text
        assert "because forward_over_reverse fails with" in text
        assert ("a kernel has a jax.custom_vjp and no jvp" in text) == (
            mode == second_derivatives.REVERSE or kind == "gauss_newton"
        )
        assert ("Pure callbacks do not" in text) == (
            mode == second_derivatives.DIFFERENCES
        )
    matrix = dense(matvec, params)
    assert error(matrix, kind) < (1e-12 if mode in EXACT else tolerance(params))


def test_the_warning_points_at_the_caller():
    made, params = problem("no jvp", dtype=jnp.float32)
    with pytest.warns(UserWarning, match="reverse_over_reverse") as caught:
        bulk_sgd.hessian(made, params)
    assert [w.filename for w in caught] == [__file__]


def test_a_mode_asked_for_is_not_replaced():
    made, params = problem("no jvp", dtype=jnp.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        bulk_sgd.hessian(made, params, mode=second_derivatives.FORWARD)(params)


def test_an_error_of_the_function_itself_is_its_own():
    def value_fn(x):
        raise RuntimeError("mine")

    made = bulk_sgd.Objective(
        lambda p, x: value_fn(x), squared_error, *[jnp.ones(2)] * 2
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="mine"):
            bulk_sgd.hessian(made, jnp.ones(2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_differences_take_vectors_of_any_length(x64, dtype, scale):
    made, params = problem("plain", dtype=dtype)
    vector = jax.tree.map(lambda x: (scale * jnp.cos(x)).astype(dtype), params)
    found = bulk_sgd.hessian(made, params, mode=second_derivatives.DIFFERENCES)(vector)
    expected = reference("hessian") @ flat(vector)
    gap = np.linalg.norm(flat(found) - expected) / np.linalg.norm(expected)
    assert gap < tolerance(params)
    zero = jax.tree.map(jnp.zeros_like, params)
    found = bulk_sgd.hessian(made, params, mode=second_derivatives.DIFFERENCES)(zero)
    np.testing.assert_array_equal(flat(found), 0)


def test_the_step_of_differences_is_the_documented_one():
    seen = []

    def fn(x):
        seen.append(x)
        return x**3

    point = jnp.full(4, 4.5)  # of length 9
    second_derivatives.central_difference(fn, point)(jnp.array([0.0, 0.0, 0.0, 1e6]))
    step = np.cbrt(9 * (9 / 4) ** 2 * np.finfo(np.float32).eps)
    # The sum of 4.5 and the step rounds by 2⁻²² at most.
    np.testing.assert_allclose(seen[0][3] - 4.5, step, rtol=0, atol=2**-21)
    np.testing.assert_allclose(seen[1][3] - 4.5, -step, rtol=0, atol=2**-21)


def test_differences_refuse_narrow_types():
    made, params = problem("plain", dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match=r"finite_differences.*bfloat16.*float32"):
        bulk_sgd.hessian(made, params, mode=second_derivatives.DIFFERENCES)(params)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="mode is 'forward'; it must be one of auto"):
        bulk_sgd.hessian(jnp.sum, jnp.ones(2), mode="forward")


def test_differences_of_the_model_leave_the_loss_exact(monkeypatch, x64):
    taken = []

    def spy(fn, point):
        taken.append(jax.tree.structure(point))
        return central_difference(fn, point)

    central_difference = second_derivatives.central_difference
    monkeypatch.setattr(second_derivatives, "central_difference", spy)
    made, params = problem("all on the host")
    matvec = bulk_sgd.gauss_newton(made, params, mode=second_derivatives.DIFFERENCES)
    matvec.linearize()(params)
    assert taken == [jax.tree.structure(params)]  # J v alone, not the outputs


def test_modes_never_share_a_program():
    made, params = problem("plain", dtype=jnp.float32)
    matvecs = [
        bulk_sgd.hessian(made, params, mode=mode)
        for mode in second_derivatives.MODES[1:]
    ]
    assert len({jax.tree.structure(matvec) for matvec in matvecs}) == 3


def test_auto_costs_a_product_no_second_trace():
    traces = []

    def model_fn(params, x):
        traces.append(1)
        return jnp.tanh(x @ params)

    made = bulk_sgd.Objective(
        model_fn, squared_error, jnp.ones((4, 3)), jnp.ones((4, 2))
    )
    matvec = bulk_sgd.hessian(made, jnp.ones((3, 2)))
    before = len(traces)
    matvec(jnp.ones((3, 2)))
    bulk_sgd.hessian(made, jnp.zeros((3, 2)))(jnp.ones((3, 2)))
    assert before == len(traces) == 2  # one of the loss, one of a product


@functools.cache
def eigenvalues_of_a_step(how, refresh_every):
    # At twice the weights tanh saturates and the top of the spectrum is spread out.
    made, params = problem(how, dtype=jnp.float32)
    tx = bulk_sgd.project_bulk(2, refresh_every=refresh_every)

    @jax.jit
    def step(params, state):
        grads = jax.grad(made)(params)
        return tx.update(grads, state, params, value_fn=made)

    return step(params, tx.init(params))[1].subspace.eigenvalues


@pytest.mark.parametrize("how", ["no jvp", "all on the host"])
@pytest.mark.parametrize(  # 2: inside of lax.cond
    "refresh_every", [pytest.param(1, marks=pytest.mark.slow), 2]
)
def test_transforms_take_any_kernel_inside_jit(how, refresh_every):
    expected = eigenvalues_of_a_step("plain", 2)
    with pytest.warns(UserWarning, match="bulk_sgd.hessian differentiates by"):
        found = eigenvalues_of_a_step(how, refresh_every)
    # Lanczos stops at residuals of 1e-3, which eigenvalues have to the square; the
    # rest is the error of differences, in float32 some 1e-3 of the largest.
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * expected[0])


@pytest.mark.parametrize("mode", second_derivatives.MODES[1:])
def test_modes_work_under_vmap(x64, mode):
    made, params = problem("plain")
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)

    @jax.jit
    @jax.vmap
    def product(params):
        matvec = bulk_sgd.hessian(made, params, mode=mode)
        return linearize(matvec)(params)

    first = jax.tree.map(lambda x: x[0], product(stacked))
    expected = reference("hessian") @ flat(params)
    np.testing.assert_allclose(
        flat(first), expected, rtol=0, atol=tolerance(params) * np.abs(expected).max()
    )


@pytest.mark.slow
def test_no_mode_sends_a_basis_over_the_devices():
    result = python("tests/sharded_modes.py")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = found[second_derivatives.FORWARD]["eigenvalues"]
    for mode, run in found.items():
        # Lanczos stops at 1e-3, and differences err by as much in float32.
        atol = (1e-3 if mode in EXACT else 5e-3) * expected[0]
        np.testing.assert_allclose(run["eigenvalues"], expected, rtol=0, atol=atol)
        shapes = [shape for arrays in run["sent"] for shape in arrays]
        assert shapes
        rows = {RANK, 2 * RANK + 11}  # of the result, and of the solve
        for shape in shapes:
            if rows & set(shape):
                assert len(shape) == 1 or set(shape) <= {*rows, 1}, mode
