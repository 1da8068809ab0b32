"""What `accelerated` refuses or warns of."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import exact_solver

import bulk_sgd

BLOCKS = bulk_sgd.blockwise(exact_solver())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inner": optax.sgd}, "inner is <function sgd.*must be an optax optimizer"),
        ({"inner": 0.1}, r"inner is 0\.1; it must be an optax optimizer"),
        ({"learning_rate": -0.1}, r"learning_rate is -0\.1; it must be a number, at"),
        ({"learning_rate": optax.sgd(0.1)}, "learning_rate is Gradient"),
        ({"threshold": 0.0}, r"threshold is 0\.0; it must be a number above 0"),
        ({"tol": -1.0}, r"tol is -1\.0; it must be a number above 0"),
        ({"surge": 1.0}, r"surge is 1\.0; it must be a number above 1"),
        ({"dominant_scale": "a"}, "dominant_scale is 'a'; it must be a number"),
        ({"dominant_scale": -0.5}, r"dominant_scale is -0\.5; .* number, at least 0"),
        ({"bulk_scale": jnp.inf}, "bulk_scale is inf; it must be a number"),
        ({"bulk_scale": -1}, "bulk_scale is -1; it must be a number, at least 0"),
        ({"metric": "adam"}, "metric is of type str; it must be a function"),
        ({"metric": lambda: 1}, r"metric cannot be called as metric\(inner_state\)"),
        ({"solver": bulk_sgd.streaming_pca()}, "solver is streaming_pca, which keeps"),
        ({"solver": BLOCKS}, "solver is blockwise, .* but of its blocks; it must"),
        ({"solver": bulk_sgd.adaptive(BLOCKS)}, "solver is adaptive, .* of its blocks"),
        ({"solver": bulk_sgd.on_drift(BLOCKS)}, "solver is on_drift, .* of its blocks"),
        ({"rank": 0}, "rank is 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(change, match):
    given = {"inner": optax.sgd(0.1), "learning_rate": 0.1} | change
    with pytest.raises(ValueError, match=match):
        bulk_sgd.accelerated(**given)


def test_a_first_loss_that_is_not_finite_is_warned_of_and_leaves_the_optimizer():
    given = {"rank": 3, "solver": exact_solver(), "switch": 0}
    given |= {"dominant_scale": 0.25, "bulk_scale": 3.0}
    tx, x = bulk_sgd.accelerated(optax.sgd(0.1), 0.1, **given), jnp.ones(11)
    with pytest.warns(UserWarning, match="update is left as inner made it") as caught:
        updates, _ = tx.update(x, tx.init(x), x, value_fn=lambda x: jnp.nan * x @ x)
    assert "bulk_scale" not in str(caught[0].message)
    assert np.array_equal(updates, -0.1 * x)


def test_an_update_needs_the_loss():
    tx = bulk_sgd.accelerated(optax.sgd(0.1), 0.1, rank=1)
    with pytest.raises(TypeError, match="needs the keyword argument value_fn"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))
