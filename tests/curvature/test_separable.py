"""Which losses an Objective takes: means over examples, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bulk_sgd
from bulk_sgd.curvature import separable
from bulk_sgd.curvature.hessian import CURVATURES

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
N = 6


def shape(*axes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((N, *axes), dtype)


FEATURES, LABELS, TOKENS = shape(3), shape(dtype=jnp.int32), shape(5, dtype=jnp.int32)
LANGUAGE = shape(1024, 50257, dtype=jnp.bfloat16), shape(1024, dtype=jnp.int32)
MASKED = shape(5), (shape(5), shape(5, dtype=bool))


def masked(ignored):
    def loss_fn(logits, labels):
        known = labels != ignored
        losses = cross_entropy(logits, jnp.where(known, labels, 0))
        return jnp.sum(losses * known) / jnp.sum(known)

    return loss_fn


def average(loss_fn):
    return lambda f, y: jnp.mean(loss_fn(f, y))


def square(f, y):
    return (f - y) ** 2


def square_and_penalty(f, y):
    return jnp.mean(square(f["x"], y[0])) + f["penalty"]


RIGHT = {
    "one per example": (cross_entropy, FEATURES, LABELS),
    "mean": (average(cross_entropy), FEATURES, LABELS),
    "mean in bfloat16": (average(square), shape(5, dtype=jnp.bfloat16), shape(5)),
    "of probabilities": (lambda f, y: -jnp.log(f[:, 0]) * y, FEATURES, LABELS),
    "mean over examples only": (lambda f, y: jnp.mean(f - y, 0), FEATURES, FEATURES),
    "masked": (lambda f, y: jnp.where(y[1], square(f, y[0]), 0), *MASKED),
    "dicts": (
        square_and_penalty,
        {"x": shape(), "penalty": jax.ShapeDtypeStruct((), float)},
        (shape(), LABELS),
    ),
    "keys": (
        lambda f, y: f * jax.vmap(jax.random.uniform)(y),
        shape(),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), N)),
    ),
    "of these six alone": (lambda f, y: f * jnp.ones(N), shape(), shape()),
    "language model": (cross_entropy, *LANGUAGE),
}
WRONG = {
    "sum": (lambda f, y: jnp.sum(square(f, y)), FEATURES, FEATURES),
    "sum of logarithms": (lambda f, y: -jnp.sum(jnp.log(f)), FEATURES, LABELS),
    "sum of many": (lambda f, y: jnp.sum(cross_entropy(f, y)), *LANGUAGE),
    "mean over a mask": (lambda f, y: jnp.mean(f - y[0], where=y[1]), *MASKED),
    "mean over what is known": (lambda f, y: jnp.nanmean(f - y), FEATURES, FEATURES),
    "root": (lambda f, y: jnp.sqrt(jnp.mean(square(f, y))), FEATURES, FEATURES),
    "contrastive": (
        lambda f, y: cross_entropy(f @ f.T, jnp.arange(len(f))),
        FEATURES,
        LABELS,
    ),
    "mean of a square": (average(square), shape(1), shape()),
} | {
    f"{ignored} in {len(labels.shape)} axes": (masked(ignored), outputs, labels)
    for ignored in (-100, -1, 0)
    for outputs, labels in ((FEATURES, LABELS), (shape(5, 7), TOKENS))
}


@pytest.mark.parametrize("name", RIGHT)
def test_means_over_examples_pass(name):
    separable.check(*RIGHT[name], N)


@pytest.mark.parametrize("name", WRONG)
def test_other_losses_are_refused(name):
    with pytest.raises(ValueError, match="loss_fn is no mean over examples"):
        separable.check(*WRONG[name], N)


def test_outputs_that_broadcast_against_targets_are_named():
    with pytest.raises(ValueError, match=r"\(4, 1\), \(4,\) broadcast"):
        separable.check(square, shape(1), shape(), N)


def test_every_use_of_an_objective_checks_its_loss_once():
    calls = []

    def loss_fn(f, y):
        calls.append(type(f))
        return jnp.sum(square(f, y))

    made = bulk_sgd.Objective(lambda w, x: x @ w, loss_fn, np.eye(4), np.ones(4), 2)
    w = jnp.ones(4)
    uses = [made, made.take(np.array([0])), jax.grad(made)]
    uses.append(jax.jit(lambda w: made(w)))
    uses += [lambda w, make=make: make(made, w) for make in CURVATURES.values()]
    for use in uses:
        with pytest.raises(ValueError, match="loss_fn is no mean over examples"):
            use(w)
    assert len(calls) == 3  # the whole and its halves, of made-up examples alone
