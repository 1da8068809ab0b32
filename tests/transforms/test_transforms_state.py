"""The state of a transform, lanes of it under vmap, and what is refused."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import count_equations, equations, flat, projector, rows
from transform_runs import (
    CLOSE,
    LOSS,
    PARAMS,
    RANK,
    UPDATES,
    VALUES,
    P,
    exact,
    first_update,
    pytree,
)

import bulk_sgd

pytestmark = pytest.mark.usefixtures("strict_ranks")

tree_get = optax.tree_utils.tree_get


# State.


def test_every_field_can_be_read_by_name():
    tx = optax.chain(optax.sgd(0.1), exact(RANK))
    _, state = first_update(tx)
    values = {
        "count": 1,
        "switched": True,
        "switch_count": 0,
        "total_matvecs": 11,
        "refreshes": 1,
        "failed_refreshes": 0,
        "useful_matvecs": 11,
        "converged": True,
        "num_matvecs": 11,
        "solver_state": (),
    }
    assert {name: tree_get(state, name) for name in values} == values
    chi = np.linalg.norm(P @ flat(UPDATES)) / np.linalg.norm(flat(UPDATES))
    np.testing.assert_allclose(tree_get(state, "alignment"), chi, rtol=1e-5)
    average = tree_get(state, "alignment_average")
    np.testing.assert_allclose(average, 0.1 * chi, rtol=1e-5)
    np.testing.assert_allclose(tree_get(state, "eigenvalues"), VALUES, rtol=1e-5)
    assert not tree_get(state, "residuals").any()
    found = projector(rows(tree_get(state, "eigenvectors")))
    np.testing.assert_allclose(found, P, **CLOSE)
    assert isinstance(tree_get(state, "subspace"), bulk_sgd.Subspace)
    documented = set(bulk_sgd.ScaleBySubspaceState._fields)
    assert documented <= {*values, "alignment", "alignment_average", "subspace"}


def test_vmap_over_seeds_equals_single_runs():
    tx = bulk_sgd.project_bulk(RANK, refresh_every=2)

    def run(x, u):
        def step(state, _):
            out, state = tx.update(u, state, x, value_fn=LOSS)
            return state, out

        state, out = jax.lax.scan(step, tx.init(x), length=3)
        return out, state.subspace.eigenvalues, state.total_matvecs, state.refreshes

    lanes = range(3)
    stack = lambda first: jax.tree.map(
        lambda *x: jnp.stack(x), *(pytree(first + i, jnp.float32) for i in lanes)
    )
    xs, us = stack(0), stack(10)
    batch = jax.jit(jax.vmap(run))(xs, us)
    run = jax.jit(run)
    for lane in lanes:
        at = functools.partial(jax.tree.map, lambda x, lane=lane: x[lane])
        single = run(at(xs), at(us))
        np.testing.assert_allclose(flat(at(batch[0])), flat(single[0]), **CLOSE)
        np.testing.assert_allclose(batch[1][lane], single[1], rtol=1e-5)
        assert int(batch[2][lane]) == int(single[2])
        assert int(batch[3][lane]) == int(single[3]) == 2


def test_refresh_stays_a_branch_under_vmap():
    tx = exact(RANK, refresh_every=2)
    state = jax.tree.map(lambda x: jnp.stack([x, x]), tx.init(PARAMS))
    update = lambda state: tx.update(UPDATES, state, PARAMS, value_fn=LOSS)[1]
    jaxpr = jax.make_jaxpr(jax.vmap(update))(state)
    branches = [
        e.params["branches"] for e in equations(jaxpr) if "branches" in e.params
    ]
    # The work is in one branch, and nowhere else. The other two are of a norm.
    inside = [[count_equations(x, "eigh") for x in pair] for pair in branches]
    assert sorted(map(sorted, inside)) == [[0, 0], [0, 1]]
    assert count_equations(jaxpr, "eigh") == 1
    # Lanes out of step: the one that is not due keeps what it has.
    state = state._replace(count=jnp.array([0, 1], jnp.int32))
    state = jax.jit(jax.vmap(update))(state)
    assert state.total_matvecs.tolist() == [11, 0]
    assert state.refreshes.tolist() == [1, 0]
    assert (state.subspace.eigenvalues[1] == 0).all()


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exact(0), "rank is 0; it must be at least 1"),
        (lambda: exact(2.5), r"rank is 2\.5; it must be an integer"),
        (lambda: exact(1, refresh_every=0), "refresh_every is 0; it must be at least"),
        (lambda: exact(1, refresh_every=1.5), r"refresh_every is 1\.5; .*an integer"),
        (lambda: exact(1, curvature="fisher"), "curvature is 'fisher'; .*gauss_newton"),
        (lambda: exact(1, switch=-1), r"switch\.step is -1; it must be at least 0"),
        (lambda: exact(1, switch=0.5), r"switch\.step is 0\.5; it must be an integer"),
        (lambda: bulk_sgd.Switch(alignment=1.5), r"\.alignment is 1\.5; .*from 0 to 1"),
        (lambda: bulk_sgd.Switch(alignment="high"), r"switch\.alignment is 'high'; it"),
        (lambda: bulk_sgd.Switch(decay=1.0), r"from 0 below 1"),
        (lambda: bulk_sgd.Switch(decay=-0.1), r"switch\.decay is -0\.1; it must be"),
        (
            lambda: bulk_sgd.scale_by_subspace(1, solver="lanczos"),
            r"solver is 'lanczos'; it must be a bulk_sgd\.Solver",
        ),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (exact(12), r"rank is 12; it must be from 1 to 11 \(the number of \(masked\)"),
        (exact(5, mask={"b": True, "v": False, "w": False}), "is 5; .*from 1 to 1"),
        (exact(1, mask={"b": False, "v": False, "w": False}), "mask selects no param"),
        (
            optax.masked(exact(1), {"b": True, "v": True, "w": False}),
            r"optax\.MaskedNode.*instead of wrapping.*mask=",
        ),
    ],
)
def test_params_that_do_not_fit_are_refused_at_init(tx, message):
    with pytest.raises(ValueError, match=message):
        tx.init(PARAMS)


def test_traced_rank_names_the_remedy():
    with pytest.raises(ValueError, match=r"rank is a traced array.*static_args"):
        jax.jit(lambda rank: exact(rank).init(PARAMS))(2)


@pytest.mark.parametrize(
    ("value_fn", "message"),
    [
        (None, "needs the keyword argument value_fn"),
        (1.0, "value_fn is of type float; it must be a function"),
        (lambda p: p["v"], r"value_fn returned float32\[4\]; .*real scalar"),
        (jax.value_and_grad(LOSS), r"value_fn returned float32\[\], float32"),
    ],
)
def test_value_fn_that_does_not_fit_is_refused(value_fn, message):
    tx = exact(1)
    with pytest.raises(TypeError, match=message):
        tx.update(UPDATES, tx.init(PARAMS), PARAMS, value_fn=value_fn)


def test_gauss_newton_needs_an_objective():
    tx = exact(1, curvature="gauss_newton")
    with pytest.raises(TypeError, match=r"gauss_newton needs a bulk_sgd\.Objective"):
        tx.update(UPDATES, tx.init(PARAMS), PARAMS, value_fn=LOSS)


def test_params_are_needed():
    tx = exact(1)
    with pytest.raises(ValueError, match=r"needs params: tx\.update\(grads, state, p"):
        tx.update(UPDATES, tx.init(PARAMS), value_fn=LOSS)


def test_solver_with_too_few_matvecs_is_refused_at_init():
    tx = bulk_sgd.project_bulk(rank=3, solver=bulk_sgd.lanczos(max_matvecs=2))
    with pytest.raises(ValueError, match=r"max_matvecs is 2; it must be at least 3"):
        tx.init(jnp.ones(5))


class Called:
    """A loss that is an object."""

    def __init__(self, fn):
        self.fn = fn

    def __call__(self, params):
        return self.fn(params)


def as_objective(fn):
    model_fn, one = lambda params, x: fn(params) * x, jnp.ones(1)
    return bulk_sgd.Objective(model_fn, lambda outputs, y: outputs, one, one)


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("kind", [lambda fn: fn, jax.jit, Called, as_objective])
def test_loss_that_every_eager_step_builds_anew_is_warned_of_once(eager, kind):
    tx = exact(1)
    state = tx.init(PARAMS)

    def step(state, scale):
        closure = kind(lambda p: scale * LOSS(p))
        return tx.update(UPDATES, state, PARAMS, value_fn=closure)[1]

    step = step if eager else jax.jit(step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in 1.0, 2.0, 3.0, 4.0:
            state = step(state, scale)
            state = tx.update(UPDATES, state, PARAMS, value_fn=LOSS)[1]
    assert [
        "value_fn is a new function at every step (" in str(w.message) for w in caught
    ] == ([True] if eager else [])
    assert all(w.filename == __file__ for w in caught)


def test_subspace_that_is_not_found_is_warned_of_once_and_counted():
    tx = bulk_sgd.project_bulk(1, solver=bulk_sgd.lanczos(1e-12, max_matvecs=1))
    step = lambda state: tx.update(UPDATES, state, PARAMS, value_fn=LOSS)
    with pytest.warns(UserWarning, match="no subspace is known yet"):
        _, state = step(tx.init(PARAMS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, state = step(state)
    np.testing.assert_array_equal(flat(out), flat(UPDATES))
    assert int(state.failed_refreshes) == int(state.refreshes) == 2


def test_count_is_left_to_the_optimizer_beside_it():
    state = optax.chain(optax.adam(1e-2), exact(1)).init(PARAMS)
    with pytest.raises(KeyError):
        optax.tree_utils.tree_get(state, "count")
