"""What many functions refuse by one shared check: a table of uses for each check."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_transforms import PARAMS, transform

import bulk_sgd
from bulk_sgd.checks import ArgumentError

X = jnp.ones(2)
EYE = jax.tree_util.Partial(jnp.multiply, X)
PAIRS = bulk_sgd.Subspace(X, jnp.eye(2), X, jnp.array(True), jnp.int32(0))
DENSITY = bulk_sgd.SpectralDensity(jnp.eye(2), jnp.eye(2), 2, jnp.int32(4))
square = lambda x: jnp.sum(x**2)


def fit(model_fn=lambda params, x: x @ params, loss_fn=lambda f, y: (f - y) ** 2):
    return bulk_sgd.Objective(model_fn, loss_fn, jnp.eye(2), X)


MATVECS = {  # what takes a matvec, and what gives it a product
    "top_eigenpairs": lambda fn: bulk_sgd.top_eigenpairs(fn, X, 1),
    "spectral_density": lambda fn: bulk_sgd.spectral_density(fn, X),
    "trace": lambda fn: bulk_sgd.trace(fn, X, sketch=1),
    "energies": lambda fn: bulk_sgd.energies(fn, PAIRS),
    "block_eigenpairs": lambda fn: bulk_sgd.block_eigenpairs(fn, X),
    "sharded": lambda fn: bulk_sgd.sharded(fn, layout())(X),
    "preconditioned": lambda fn: bulk_sgd.preconditioned(fn, X)(X),
    "update": lambda fn: tx().update(X, tx().init(X), X, matvec=fn),
}
LOSSES = {
    "hessian": lambda fn: bulk_sgd.hessian(fn, X),
    "value_grad_and_matvec": lambda fn: bulk_sgd.value_grad_and_matvec(fn, X),
    "loss_slice": lambda fn: bulk_sgd.loss_slice(fn, X, [X], [X]),
    "check_deterministic": lambda fn: bulk_sgd.check_deterministic(fn, X),
    "update": lambda fn: tx().update(X, tx().init(X), X, value_fn=fn),
}


def tx():
    return bulk_sgd.project_bulk(1, solver=bulk_sgd.lanczos(max_matvecs=2))


def layout(kind=jax.sharding.AxisType.Auto):
    return jax.NamedSharding(jax.make_mesh((1,), ("x",), (kind,)), jax.P("x"))


def named(table):
    return [pytest.param(use, id=name) for name, use in table.items()]


# Functions.

CALLS = {
    **{f"{name} matvec": (use, "matvec(vector)") for name, use in MATVECS.items()},
    **{f"{name} value_fn": (use, "value_fn(params)") for name, use in LOSSES.items()},
    "model_fn": (lambda fn: fit(model_fn=fn), "model_fn(params, inputs)"),
    "loss_fn": (lambda fn: fit(loss_fn=fn), "loss_fn(outputs, targets)"),
    "curvature": (lambda fn: transform(curvature=fn), "curvature(value_fn, params)"),
    "mask": (lambda fn: transform(mask=fn).init(PARAMS), "mask(params)"),
    "sharding": (lambda fn: transform(sharding=fn).init(PARAMS), "sharding(params)"),
    "by": (lambda fn: bulk_sgd.block_eigenpairs(EYE, X, by=fn), "by(path)"),
    "solver": (
        lambda fn: bulk_sgd.adaptive(bulk_sgd.Solver(fn, print)),
        "solver.init(params, rank)",
    ),
    "mean": (lambda fn: DENSITY.mean(fn), "fn(nodes)"),
}


@pytest.mark.parametrize(("use", "call"), CALLS.values(), ids=CALLS)
def test_function_of_another_number_of_arguments(use, call):
    with pytest.raises(TypeError) as caught:
        use(lambda a, b, c: a)
    assert f"cannot be called as {call}: missing a required" in str(caught.value)


@pytest.mark.parametrize("use", named(MATVECS))
def test_matvec_that_is_none_or_returns_something_else(use):
    with pytest.raises(TypeError, match="matvec is of type ArrayImpl; it must be a fu"):
        use(jnp.eye(2))
    for wrong in jnp.sum, lambda v: None, lambda v: (v, v), lambda v: 1j * v:
        with pytest.raises(ValueError, match=r"^matvec returned .* a vector like it"):
            use(wrong)


@pytest.mark.parametrize("use", named(LOSSES))
def test_loss_that_returns_something_else(use):
    for wrong, got in [
        (lambda x: (square(x), {"accuracy": 1}), r"float32\[\], int\[\]"),
        (lambda x: (square(x),), r"float32\[\]"),
        (lambda x: x, r"float32\[2\]"),
        (lambda x: 1j * square(x), r"complex64\[\]"),
        (lambda x: "loss", r"str\[\]"),
        (lambda x: None, "nothing"),
    ]:
        with pytest.raises(TypeError, match=f"^value_fn returned {got}; it must "):
            use(wrong)


@pytest.mark.parametrize("use", [lambda o: o(X), *named(LOSSES)])
def test_objective_whose_parts_return_auxiliary_outputs(use):
    aux = lambda params, x: (x @ params, {"hidden": x})
    with pytest.raises(TypeError, match=r"^loss_fn fails .*model_fn returned a tu"):
        use(fit(model_fn=aux))
    aux = lambda outputs, y: ((outputs - y) ** 2, {"accuracy": y})
    with pytest.raises(TypeError, match=r"^loss_fn returned float32\[2\], fl"):
        use(fit(loss_fn=aux))


def test_params_with_none_in_them_are_put_together_again():
    params = {"act": None, "w": X}
    value_fn = lambda params: jnp.sum(params["act"](params["w"]))
    for use in (
        lambda fn: bulk_sgd.hessian(fn, params),
        lambda fn: bulk_sgd.loss_slice(fn, params, [params], [X]),
        lambda fn: tx().update(params, tx().init(params), params, value_fn=fn),
    ):
        with pytest.raises(TypeError, match=r"^value_fn fails .*put back what they ha"):
            use(value_fn)
        use(lambda params: jnp.sum(jnp.cos(params["w"])))


# Vectors.

VECTORS = {
    "hessian": ("vector", bulk_sgd.hessian(square, X)),
    "products of one pass": ("vector", bulk_sgd.value_grad_and_matvec(square, X)[2]),
    "preconditioned": ("vector", bulk_sgd.preconditioned(EYE, X)),
    "slice": ("directions[0]", lambda v: bulk_sgd.loss_slice(square, X, [v], [X])),
    "subsampling": ("vector", lambda v: bulk_sgd.subsampling_error(fit(), X, v, 1, 2)),
    "project": ("vector", PAIRS.project),
    "alignment": ("vector", PAIRS.alignment),
    "updates": ("updates", lambda v: tx().update(v, tx().init(X), X, value_fn=square)),
}


@pytest.mark.parametrize(("name", "use"), VECTORS.values(), ids=VECTORS)
def test_vector_of_another_form(name, use):
    for wrong in jnp.ones(3), {"w": X}, [1.0, 1.0]:
        with pytest.raises(ArgumentError) as caught:
            use(wrong)
        assert str(caught.value).startswith(name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hessian", "products of one pass", "slice"])
def test_vector_of_integers_would_round_the_product(name):
    with pytest.raises(ValueError, match="is of type int32; it must be a floating"):
        VECTORS[name][1](jnp.arange(2))


SUBSPACES = {
    "energies": lambda pairs: bulk_sgd.energies(EYE, pairs),
    "rank_profile": bulk_sgd.rank_profile,
    "overlap": PAIRS.overlap,
    "start": lambda pairs: bulk_sgd.top_eigenpairs(EYE, pairs, 1),
}


@pytest.mark.parametrize(("use"), named(SUBSPACES))
def test_subspace_of_another_form(use):
    wrong = [PAIRS._replace(eigenvalues=jnp.ones(3)), PAIRS._replace(eigenvectors=None)]
    for pairs in wrong if use is SUBSPACES["start"] else [*wrong, tuple(PAIRS), None]:
        with pytest.raises(ValueError, match=r"(subspace|other|start) (is|has) "):
            use(pairs)


@pytest.mark.parametrize(
    "state",
    [
        (),
        X,
        optax.sgd(1.0).init(X),
        bulk_sgd.project_bulk(2).init(X),
        bulk_sgd.project_bulk(1, solver=bulk_sgd.streaming()).init(X),
    ],
)
def test_state_of_another_transform(state):
    with pytest.raises(ValueError, match=r"^(solver_state of )?state (is of|has the) "):
        tx().update(X, state, X, value_fn=square)


# Numbers.


@pytest.mark.parametrize(
    "use",
    [
        lambda key: bulk_sgd.top_eigenpairs(EYE, X, 1, key=key),
        lambda key: bulk_sgd.spectral_density(EYE, X, 2, 2, key=key),
        lambda key: bulk_sgd.trace(EYE, X, sketch=0, key=key),
        lambda key: bulk_sgd.energies(EYE, PAIRS, key=key),
        lambda key: bulk_sgd.block_eigenpairs(EYE, X, key=key),
    ],
)
def test_keys_are_single_keys(use):
    for wrong in 0, "seed", jnp.ones(2), jax.random.split(jax.random.key(0)):
        with pytest.raises(ValueError, match=r"^key is .* one PRNG key, such as"):
            use(wrong)
    use(jax.random.PRNGKey(0))


@pytest.mark.parametrize(
    "make",
    [
        bulk_sgd.lanczos,
        lambda x: bulk_sgd.streaming(gain=x),
        lambda x: bulk_sgd.adaptive(bulk_sgd.lanczos(), 1.0, learning_rate=x),
        lambda x: bulk_sgd.bulk_sgd(x, 1),
        lambda x: bulk_sgd.path_scales("cross", x),
        lambda x: bulk_sgd.project_bulk(1, refresh_every=x),
        lambda x: bulk_sgd.Switch(step=x),
    ],
)
def test_traced_numbers_are_scalars(make):
    jax.eval_shape(lambda x: make(x) and None, 1)
    with pytest.raises(ValueError, match=r"is a traced array of shape \(2,\)"):
        jax.eval_shape(lambda x: make(x) and None, X)


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x: bulk_sgd.loss_slice(square, X, [X], [x]), "offsets[0]"),
        (DENSITY.density, "points"),
        (DENSITY.distribution, "points"),
        (DENSITY.quantile, "levels"),
    ],
)
def test_real_numbers(use, name):
    for wrong in "ab", None, {}, 1j * X:
        with pytest.raises(ArgumentError) as caught:
            use(wrong)
        assert str(caught.value).startswith(f"{name} is ")
    use([0.0, 1.0])
    use(np.arange(2))


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x: bulk_sgd.loss_slice(square, X, x, [X]), "directions"),
        (lambda x: bulk_sgd.loss_slice(square, X, [X], x), "offsets"),
        (functools.partial(bulk_sgd.rank_profile, PAIRS), "ranks"),
    ],
)
def test_sequences(use, name):
    for wrong in None, 3, "ab", {"a": 1}:
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be a sequence"):
            use(wrong)


# Devices.


@pytest.mark.parametrize(
    "use",
    [
        lambda sharding: bulk_sgd.sharded(EYE, sharding)(X),
        lambda sharding: bulk_sgd.subsampling_error(
            fit(), X, X, 1, 2, sharding=sharding
        ),
        lambda sharding: bulk_sgd.project_bulk(1, sharding=sharding).init(X),
    ],
)
def test_layouts(use):
    for wrong in "x", jax.P("x"), 3, layout(jax.sharding.AxisType.Explicit), [layout()]:
        with pytest.raises(ValueError, match=r"^sharding.* must be a jax\.Named"):
            use(wrong)
