"""Transforms among the pytrees, arguments and wrappers that users bring."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver, flat, quadratic, symmetric, top

import bulk_sgd
from bulk_sgd.solvers import thick_restart

MATRIX = symmetric([10, 6, 1, 0.5, 0.2])
P = top(MATRIX, 2)[1]
X = jnp.asarray(np.random.default_rng(0).standard_normal(5), jnp.float32)


@pytest.fixture(scope="module")
def network():
    """A pytree that can be called, as can every tree of its structure."""
    return eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.is_array)


def square(network):
    return sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(network))


@pytest.mark.parametrize("as_function", [False, True])
def test_a_mask_that_can_be_called_is_no_function(network, as_function):
    flags = jax.tree.map(lambda x: x.ndim == 2, network)
    tx = bulk_sgd.project_bulk(2, mask=(lambda _: flags) if as_function else flags)
    updates, state = tx.update(network, tx.init(network), network, value_fn=square)
    for flag, new, old in zip(*map(jax.tree.leaves, (flags, updates, network))):
        assert np.array_equal(new, old) is not flag
    assert state.subspace.eigenvectors.layers[0].bias is None


@pytest.mark.slow
def test_blocks_and_layouts_of_a_network_that_can_be_called(network):
    devices = jax.sharding.Mesh(jax.devices()[:1], ("x",))
    whole = jax.sharding.NamedSharding(devices, jax.sharding.PartitionSpec())
    layout = jax.tree.map(lambda _: whole, network)
    solver = bulk_sgd.blockwise(bulk_sgd.lanczos())
    tx = bulk_sgd.project_bulk(2, solver=solver, sharding=layout)
    _, state = tx.update(network, tx.init(network), network, value_fn=square)
    assert state.subspace.converged


def test_flags_strings_and_functions_reach_value_fn_as_they_are():
    def loss(x, twice, name, apply, shift):
        assert name == "a name"
        return (2 if twice else 1) * apply(x - shift)

    tx = bulk_sgd.project_dominant(2, solver=exact_solver())
    extra = {"name": "a name", "apply": quadratic(MATRIX), "shift": jnp.ones(5)}
    found = []
    for twice in (False, True):
        more = {"value_fn": loss, "twice": twice, "unknown": "to loss"}
        updates, state = tx.update(X, tx.init(X), X, **more, **extra)
        np.testing.assert_allclose(updates, P @ np.asarray(X), atol=1e-5)
        found.append(state.subspace.eigenvalues)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)


def test_a_solve_is_compiled_once_for_one_flag():
    def loss(x, train):
        assert train
        return quadratic(MATRIX)(x)

    tx = bulk_sgd.project_bulk(2)
    state = tx.init(X)
    for _ in range(2):
        _, state = tx.update(X, state, X, value_fn=loss, train=True)
    before = solves()
    _, state = tx.update(X, state, X, value_fn=loss, train=True)
    assert solves() == before > 0


def solves():
    """Number of programs that the Lanczos solver has compiled."""
    return thick_restart.solve._cache_size()


@jax.tree_util.register_pytree_node_class
class Box:
    """A node that knows nothing of equality."""

    def __init__(self, x):
        self.x = x

    def tree_flatten(self):
        return (self.x,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_a_preconditioner_is_compared_by_structure_and_shapes():
    tx = bulk_sgd.project_bulk(2, solver=exact_solver())
    loss = lambda box: quadratic(MATRIX)(box.x)
    step = lambda p: tx.update(
        Box(X), tx.init(Box(X)), Box(X), value_fn=loss, preconditioner=p
    )
    updates, _ = step(Box(jnp.ones(5)))
    np.testing.assert_allclose(flat(updates), X - P @ np.asarray(X), atol=1e-5)
    for wrong in (Box(jnp.ones(4)), jnp.ones(5)):
        with pytest.raises(ValueError, match="preconditioner has the shapes"):
            step(wrong)


def test_parameters_that_are_all_hidden_are_named_so():
    tx = optax.masked(bulk_sgd.project_bulk(1), {"a": False})
    with pytest.raises(ValueError, match=r"optax\.MaskedNode.*mask="):
        tx.init({"a": jnp.ones(3)})


def test_numbers_of_python_are_no_parameters():
    with pytest.raises(ValueError, match=r"params\['a'\] is of type float; it must"):
        bulk_sgd.project_bulk(1).init({"a": 1.0})


def test_an_eigenvalue_beyond_the_dtype_is_not_converged():
    matvec = lambda x: jnp.full(5, 1e38 * jnp.sum(x))  # 5e38 from finite products
    pairs = bulk_sgd.top_eigenpairs(matvec, jnp.ones(5), 1)
    assert not pairs.converged
    assert not np.isfinite(pairs.eigenvalues)


@pytest.mark.parametrize("solver", [exact_solver(), bulk_sgd.streaming()])
def test_none_in_place_of_what_was_partitioned_off(solver):
    tx, whole = bulk_sgd.project_bulk(2, solver=solver), {"x": X, "rest": None}
    loss = lambda p: quadratic(MATRIX)(p["x"])
    out, _ = tx.update(whole, tx.init(whole), whole, value_fn=loss)
    expected, _ = tx.update(X, tx.init(X), X, value_fn=quadratic(MATRIX))
    assert out["rest"] is None
    np.testing.assert_allclose(out["x"], expected, atol=1e-5)
