"""Arms, optimizers and solvers are what their fields say."""

import jax
import jax.numpy as jnp
import pytest

from bulk_sgd.lab import config
from bulk_sgd.lab.from_config import arms, optimizers, solvers
from bulk_sgd.solvers import subspace


def test_zero_bounds_are_the_defaults_of_lanczos():
    matrix = jnp.diag(jnp.linspace(1, 2, 400))
    fields = config.default()
    fields.subspace.tol, fields.subspace.warm_start = 0, False

    def spent(bound):
        fields.subspace.max_matvecs = bound
        solver = solvers.build(fields.subspace)
        start = subspace.empty(jnp.ones(400), fields.subspace.rank)
        arguments = (), jnp.ones(400), jax.random.key(0)
        found, _ = solver.solve(lambda v: matrix @ v, start, *arguments)
        return int(found.num_matvecs)

    assert [spent(0), spent(40)] == [150, 40]


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("sgd", (1, 1)),
        ("dom_sgd", (1, 0)),
        ("bulk_sgd", (0, 1)),
        ("bulk_path(0.3)", (0.3, 1)),
        ("dom_path(0.3)", (1, 0.3)),
        ("cross_path(0.25)", (0.25, 0.75)),
        ("scales(0.5, 2)", (0.5, 2)),
        (" scales( -1,1e1 ) ", (-1, 10)),
        ("accelerated", (0.25, 2)),
        ("accelerated(0, 3)", (0, 3)),
    ],
)
def test_arms_are_points_of_the_plane(text, scales):
    arm = arms.parse(text)
    assert (arm.dominant_scale, arm.bulk_scale) == pytest.approx(scales)
    assert " " not in arm.name
    assert arm.guarded is arm.name.startswith("accelerated")


@pytest.mark.parametrize(
    "text",
    ["bulk(0.3)", "bulk_path", "bulk_path(x)", "bulk_path(1,2)", "scales(1)", ""],
)
def test_other_arms_are_refused(text):
    with pytest.raises(ValueError, match=r"config\.arms has"):
        arms.parse(text)


def test_optimizers_are_optax_with_their_fields():
    fields = config.default().optimizer
    fields.learning_rate, fields.momentum = 0.5, 0.9
    grads, params = jnp.ones(2), jnp.zeros(2)

    def second_update(name):
        fields.name = name
        optimizer = optimizers.build(fields, fields.learning_rate)
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params + 1)
        return float(updates[0])

    assert second_update("sgd") == pytest.approx(-0.5 * 1.9)
    fields.nesterov = True
    assert second_update("sgd") == pytest.approx(-0.5 * (1 + 0.9 * 1.9))
    # Adam divides by √v + 1e-8 after a float32 bias correction.
    assert second_update("adam") == pytest.approx(-0.5, rel=1e-4)
    fields.weight_decay = 0.1
    assert second_update("adamw") == pytest.approx(-0.5 * 1.1, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "threshold"),
    [
        ({"momentum": 0.9}, 2.0),
        ({"momentum": 0.9, "nesterov": True}, 3.8 / 2.8),
        ({"name": "adam"}, 2.0),
    ],
)
def test_guarded_arms_end_at_the_threshold_of_the_full_batch_or_2(changes, threshold):
    fields = config.default().optimizer
    fields.update(changes)
    found = optimizers.guard_threshold(fields, fields.name == "adam")
    assert found == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("solver", "changes", "spent"),
    [
        ("power", {}, 3),
        ("power", {"along": "update"}, 1),
        ("lanczos", {"drift": 0.5}, 1),
        ("power", {"drift": 0.5, "probe_every": 2}, 1),
        ("power", {"blocks": "layer"}, 3),
        ("krylov_filter", {"length": 2}, 4),  # the first call, all of four
        ("update_pca", {"window": 3}, 0),
        ("streaming_pca", {}, 0),
    ],
)
def test_solvers_are_built_from_their_fields(solver, changes, spent):
    fields = config.default().subspace
    fields.update(rank=3, solver=solver, **changes)
    built = solvers.build(fields)
    values = jnp.array([5.0, 4.0, 3.0, 1.0])
    known = subspace.empty(values, 3)._replace(
        eigenvalues=values[:3], eigenvectors=jnp.eye(3, 4)
    )
    found, _ = built.solve(
        lambda v: values * v, known, built.init(values, 3), values, jax.random.key(0)
    )
    assert bool(found.converged)
    assert int(found.num_matvecs) == spent


def test_streaming_has_the_gain_of_the_config():
    fields = config.default().subspace
    fields.update(rank=1, solver="streaming", gain=1.0)
    built, ones = solvers.build(fields), jnp.ones(2)
    found, state = subspace.empty(ones, 1), built.init(ones, 1)
    for curvature in (4.0, 2.0):
        matvec = lambda v, curvature=curvature: curvature * v
        found, state = built.solve(matvec, found, state, ones, jax.random.key(0))
    # The last product alone; a smaller gain would give the mean of both.
    assert float(found.eigenvalues[0]) == pytest.approx(2.0)
