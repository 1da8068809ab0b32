"""What the library refuses, and with which sentence."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver
from small_transforms import PARAMS, loss, transform, update

import bulk_sgd
from bulk_sgd import checks


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: bulk_sgd.lanczos(tol=-1), "tol"),
        (lambda: bulk_sgd.streaming(2).init(jnp.ones(9), 5), "columns"),
        (
            lambda: bulk_sgd.blockwise(bulk_sgd.streaming(2)).init(PARAMS, 3),
            "columns",
        ),
        (lambda: bulk_sgd.blockwise(exact_solver(), "no").init(PARAMS, 5), "by"),
        (lambda: bulk_sgd.adaptive(None), "solver"),
        (lambda: bulk_sgd.hessian(loss, {"w": 1}), "params['w']"),
    ],
)
def test_errors_carry_the_name_of_the_argument(make, name):
    with pytest.raises(checks.ArgumentError) as caught:
        make()
    error = caught.value
    assert error.name == name
    assert str(error) == f"{name} {error.problem}"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# Other arguments.


@pytest.mark.parametrize("seed", ["zero", 1.5, -1, None])
def test_seed_must_be_an_integer(seed):
    with pytest.raises(ValueError, match=r"^seed is .*at least 0"):
        transform(seed=seed)


@pytest.mark.parametrize(
    "mask",
    [
        "str",
        1,
        {"b": "yes", "w": True},
        {"b": True},
        {"b": True, "w": True, "c": True},
        {"b": None, "w": True},
        lambda tree: "all",
    ],
)
def test_mask_that_is_none(mask):
    with pytest.raises(ValueError, match=r"^mask is .*; it must be a pytree of bools"):
        transform(mask=mask).init(PARAMS)


def test_numpy_bools_are_a_mask():
    state = transform(mask={"b": np.bool_(True), "w": np.False_}).init(PARAMS)
    assert state.subspace.eigenvectors["w"] is None


# Params.

NOT_FLOATS = [
    ({"b": jnp.ones(2), "w": jnp.arange(6)}, r"\['w'\] is of type int32"),
    ({"b": jnp.ones(2), "w": jnp.ones(6, complex)}, r"\['w'\] is of type complex64"),
    ({"b": 1, "w": jnp.ones(6)}, r"\['b'\] is of type int"),
    ({"b": jax.random.key(0), "w": jnp.ones(6)}, r"\['b'\] is of type key"),
]


@pytest.mark.parametrize(("params", "message"), NOT_FLOATS)
def test_params_that_are_not_floating_point(params, message):
    with pytest.raises(ValueError, match=f"^params{message}.*mask=|{message}.*asarray"):
        transform().init(params)
    with pytest.raises(ValueError, match=f"^params{message}"):
        bulk_sgd.hessian(loss, params)
    with pytest.raises(ValueError, match=f"^start{message}"):
        bulk_sgd.top_eigenpairs(lambda v: v, params, 1)


def test_params_split_over_explicit_axes_are_refused_and_copies_are_not():
    mesh = jax.make_mesh((1,), ("fsdp",), (jax.sharding.AxisType.Explicit,))
    on = lambda spec: jax.device_put(jnp.ones(6), jax.NamedSharding(mesh, spec))
    for check in (
        transform().init,
        lambda params: bulk_sgd.hessian(lambda p: jnp.sum(p["w"] ** 2), params),
        jax.jit(lambda params: transform().init(params)),
    ):
        with pytest.raises(ValueError, match=r"^params\['w'\] .* Explicit axes .*fsdp"):
            check({"w": on(jax.P("fsdp"))})
        check({"w": on(jax.P())})
    tx, whole = transform(), {"w": jnp.ones(6)}
    step = lambda u, p: tx.update(u, tx.init(whole), p, value_fn=loss)
    for name, trees in ("params", (whole, {"w": on(jax.P("fsdp"))})), (
        "updates", ({"w": on(jax.P("fsdp"))}, whole)
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"^{name}\['w'\] .* Explicit axes"):
            step(*trees)


def test_update_with_other_trees_than_at_init():
    tx = transform(solver=bulk_sgd.update_pca())  # takes no product that could fail
    state, short = tx.init(PARAMS), PARAMS | {"b": jnp.ones(3)}
    for name, updates, params in [
        ("params", short, short),
        ("params", {"w": PARAMS["w"]}, {"w": PARAMS["w"]}),
        ("updates", short, PARAMS),
        ("updates", PARAMS | {"b": None}, PARAMS),
    ]:
        with pytest.raises(ValueError, match=rf"^{name} has the shapes .*; .* like"):
            tx.update(updates, state, params, value_fn=loss)


def test_sharding_must_be_named_shardings_that_fit():
    auto, explicit = (
        jax.NamedSharding(jax.make_mesh((1,), ("x",), (kind,)), jax.P("x"))
        for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit)
    )
    for wrong, name in [
        (jax.P("x"), "sharding"),
        ("x", "sharding"),
        (lambda params: "x", "sharding"),
        ({"b": auto, "w": jax.P("x")}, r"sharding\['w'\]"),
        ({"b": auto}, "sharding"),
        (explicit, "sharding"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be a jax.Named"):
            transform(sharding=wrong).init(PARAMS)
    deep = jax.NamedSharding(auto.mesh, jax.P(None, None, "x"))
    with pytest.raises(ValueError, match=r"^sharding\['b'\] is .*of shape \(2,\)"):
        transform(sharding={"b": deep, "w": auto}).init(PARAMS)
    transform(sharding={"b": auto, "w": auto}).init(PARAMS)


@pytest.mark.parametrize(
    "use",
    [
        lambda fn: bulk_sgd.hessian(fn, PARAMS),
        lambda fn: bulk_sgd.top_eigenpairs(fn, PARAMS),
        lambda fn: bulk_sgd.spectral_density(fn, PARAMS),
        lambda fn: bulk_sgd.trace(fn, PARAMS),
        lambda fn: bulk_sgd.loss_slice(fn, PARAMS, [PARAMS], [jnp.ones(1)]),
        lambda fn: update(transform(), value_fn=fn),
    ],
)
def test_functions_are_functions_of_arrays(use):
    with pytest.raises(TypeError, match=r"is of type .*; it must be a function"):
        use(np.eye(3))
    hidden = jax.tree_util.Partial(lambda act, x: act(loss(x)), jnp.tanh)
    with pytest.raises(TypeError, match=r"among the arrays.*jax\.tree_util\.Partial"):
        use(hidden)


def test_numbers_of_python_are_no_start():
    with pytest.raises(ValueError, match=r"^start\[0\] is of type float; .*asarray"):
        bulk_sgd.top_eigenpairs(lambda v: v, [1.0, 2.0], 1)


@pytest.mark.parametrize("kind", ["gauss_newton", "functional_hessian"])
def test_params_of_the_other_curvatures(kind):
    objective = bulk_sgd.Objective(
        lambda w, x: x @ w, lambda f, y: (f - y) ** 2, jnp.eye(2), jnp.ones(2)
    )
    with pytest.raises(ValueError, match=r"^params is of type int32"):
        getattr(bulk_sgd, kind)(objective, jnp.arange(2))


def test_mask_leaves_integer_params_out():
    params = {"count": jnp.arange(3), "w": jnp.ones((2, 3))}
    tx = transform(mask={"count": False, "w": True})
    value_fn = lambda p: loss(p["w"]) + p["count"][1]
    _, state = update(tx, params, value_fn)
    np.testing.assert_allclose(state.subspace.eigenvalues, [12, 10])


@pytest.mark.parametrize("empty", [{}, (), {"w": None}])
def test_params_without_arrays(empty):
    tx = transform()
    with pytest.raises(ValueError, match=r"^params has no arrays"):
        tx.update(empty, tx.init(empty), empty, value_fn=loss)
    with pytest.raises(ValueError, match=r"^start has no arrays"):
        bulk_sgd.top_eigenpairs(lambda v: v, empty, 1)


# Solvers.


def changed(**fields):
    """A solver whose Subspace has other fields."""

    def solve(matvec, subspace, state, updates, key):
        found, state = exact_solver().solve(matvec, subspace, state, updates, key)
        return found._replace(**fields), state

    return solve


@pytest.mark.parametrize("refresh_every", [1, 2])
@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda m, subspace, *rest: subspace, "returned Subspace; it must return a p"),
        (lambda m, subspace, *rest: None, "returned NoneType; it must return a pair"),
        (lambda m, subspace, *rest: (None, ()), "returned tuple; it must return a pa"),
        (
            lambda m, subspace, *rest: (subspace, 1),
            r"returned state as int32\[\]; it must be like .* given, \(\)",
        ),
        (
            changed(eigenvalues=jnp.ones(3)),
            r"returned eigenvalues as float32\[3\]; .*float32\[2\]",
        ),
        (
            changed(eigenvectors=jnp.ones((2, 8))),
            r"returned eigenvectors as float32\[2, 8\]; .*'b': 'float32\[2, 2\]'",
        ),
        (
            changed(num_matvecs=jnp.float32(1)),
            r"returned num_matvecs as float32\[\]; .*int32\[\]",
        ),
    ],
)
def test_solver_that_returns_something_else(solve, message, refresh_every):
    solver = bulk_sgd.Solver(lambda params, rank: (), solve)
    with pytest.raises(TypeError, match=rf"^solver\.solve {message}"):
        update(transform(solver=solver, refresh_every=refresh_every))


def test_solver_may_return_python_scalars():
    solver = bulk_sgd.Solver(
        lambda params, rank: (), changed(num_matvecs=7, converged=True)
    )
    _, state = update(transform(solver=solver))
    assert int(optax.tree_utils.tree_get(state, "total_matvecs")) == 7
