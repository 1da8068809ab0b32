import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from bulk_sgd.lab.from_config import losses

OUTPUTS = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, 0.25]], np.float32)
TARGETS = np.array([2, 1], np.int32)


def build(name="mse", reduction="sum", num_classes=3):
    return losses.build(ConfigDict({"name": name, "reduction": reduction}), num_classes)


def test_squared_error_sums_over_classes_per_example():
    # (0.5, -1, 2 - 1) and (1, 0 - 1, 0.25), squared and summed by hand.
    np.testing.assert_allclose(build()(OUTPUTS, TARGETS), [2.25, 2.0625], rtol=1e-6)


@pytest.mark.parametrize(("reduction", "ratio"), [("half_sum", 2), ("mean", 3)])
def test_reductions_differ_by_a_factor(reduction, ratio):
    total = build(reduction="sum")(OUTPUTS, TARGETS)
    np.testing.assert_allclose(
        ratio * build(reduction=reduction)(OUTPUTS, TARGETS), total, rtol=1e-6
    )


def test_cross_entropy_is_the_negative_log_likelihood():
    likelihoods = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(axis=1, keepdims=True)
    expected = -np.log(likelihoods[[0, 1], TARGETS])
    actual = build("cross_entropy")(OUTPUTS, TARGETS)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_losses_keep_the_dtype_of_the_outputs(name):
    losses_of_examples = build(name)(jnp.asarray(OUTPUTS, jnp.bfloat16), TARGETS)
    assert losses_of_examples.shape == (2,)
    assert losses_of_examples.dtype == jnp.bfloat16


@pytest.mark.parametrize("name", ["mse", "cross_entropy"])
def test_equal_configurations_share_a_jit_cache(name):
    loss, again = build(name), build(name)
    assert loss == again
    assert hash(loss) == hash(again)
    apply = jax.jit(lambda loss_fn, f, y: loss_fn(f, y), static_argnums=0)
    apply(loss, OUTPUTS, TARGETS)
    apply(again, OUTPUTS, TARGETS)
    assert apply._cache_size() == 1


def test_different_reductions_are_different_functions():
    assert build(reduction="sum") != build(reduction="mean")


def test_outputs_of_width_one_do_not_broadcast():
    with pytest.raises(ValueError, match=r"shape \(2, 1\).*number of classes, 3"):
        build()(OUTPUTS[:, :1], TARGETS)


def test_unknown_loss_is_named():
    with pytest.raises(
        ValueError, match=r"^config\.loss\.name is 'hinge'.*one of cross_entropy, mse"
    ):
        build("hinge")


def test_unknown_reduction_is_named():
    with pytest.raises(
        ValueError,
        match=r"^config\.loss\.reduction is 'max'.*half_sum, mean, sum",
    ):
        build(reduction="max")


def test_accuracy_counts_the_peaks_at_the_target():
    assert losses.accuracy(OUTPUTS, TARGETS) == 0.5
    assert losses.accuracy(OUTPUTS, np.array([2, 0])) == 1.0
