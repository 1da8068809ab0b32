"""Running text: bytes and token ids, and language models that train on them."""

import json

import numpy as np
import pytest
from texts import load, small

from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment
from configs import char_lm


@pytest.fixture
def written(tmp_path):
    def write(content, name="text.txt"):
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def test_every_byte_is_the_target_of_the_one_before(written):
    content = bytes(range(200, 256)) + bytes(range(44))
    dataset = load(f"text:{written(content)}", length=4)
    # 90 bytes to train on make 22 examples, whose 88 inputs leave 89 as a last target.
    assert dataset.train_inputs.shape == dataset.train_targets.shape == (22, 4)
    assert bytes(dataset.train_inputs.astype(np.uint8).ravel()) == content[:88]
    assert bytes(dataset.train_targets.astype(np.uint8).ravel()) == content[1:89]
    assert bytes(dataset.test_inputs.astype(np.uint8).ravel()) == content[90:98]
    assert bytes(dataset.test_targets.astype(np.uint8).ravel()) == content[91:99]
    assert {array.dtype for array in dataset[1:5]} == {np.dtype(np.int32)}
    assert (dataset.num_classes, dataset.vocab_size) == (256, 256)


def test_token_ids_are_examples_as_bytes_are(written, tmp_path):
    ids = np.random.default_rng(0).integers(300, size=100).astype(np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    dataset = load(f"tokens:{tmp_path}/ids.npy", length=4, vocab_size=512)
    assert dataset.train_inputs.shape == dataset.train_targets.shape == (22, 4)
    np.testing.assert_array_equal(dataset.train_inputs.ravel(), ids[:88])
    np.testing.assert_array_equal(dataset.train_targets.ravel(), ids[1:89])
    np.testing.assert_array_equal(dataset.test_inputs.ravel(), ids[90:98])
    assert {array.dtype for array in dataset[1:5]} == {np.dtype(np.int32)}
    assert (dataset.num_classes, dataset.vocab_size) == (512, 512)
    smallest = load(f"tokens:{tmp_path}/ids.npy", length=4)
    assert smallest.vocab_size == ids.max() + 1


@pytest.mark.parametrize("kind", ["", "tokens:"])
def test_ids_to_test_on_are_of_the_kind_of_those_to_train_on(tmp_path, kind):
    np.save(tmp_path / "a.npy", np.arange(9))
    np.save(tmp_path / "b.npy", np.arange(300, 305))
    dataset = load(f"tokens:{tmp_path}/a.npy", f"{kind}{tmp_path}/b.npy", length=4)
    assert dataset.test_inputs.tolist() == [[300, 301, 302, 303]]
    assert (len(dataset.train_inputs), dataset.vocab_size) == (2, 305)


def test_random_tokens_are_as_many_as_asked_for():
    sizes = {"length": 4, "num_train": 50, "num_test": 3, "vocab_size": 7}
    dataset = load("random", **sizes)
    assert dataset.train_inputs.shape == (50, 4)
    assert dataset.test_targets.shape == (3, 4)
    assert set(dataset.train_inputs.ravel()) == set(range(7))
    np.testing.assert_array_equal(
        dataset.train_inputs.ravel()[1:], dataset.train_targets.ravel()[:-1]
    )


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.arange(20), {"vocab_size": 19}, r"vocab_size is 19, but the text has 20 t"),
        (np.arange(20.0), {}, r"name is 'tokens:.*', but it holds float64 \(20,\), no"),
        (np.ones((4, 5), int), {}, r"it holds int64 \(4, 5\), not integers"),
        (-np.arange(20), {}, r"it holds negative numbers"),
        (np.array([{}] * 20), {}, r"there is no such \.npy of numbers"),
    ],
)
def test_wrong_token_ids_are_named(tmp_path, array, changes, message):
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(ValueError, match=message):
        load(f"tokens:{tmp_path}/ids.npy", length=1, **changes)


def test_absent_token_ids_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"name is 'tokens:absent\.npy', but there is"):
        load("tokens:absent.npy", length=1)
    with pytest.raises(ValueError, match=r"vocab_size is 0, but random tokens need 1"):
        load("random", length=1, num_train=1, num_test=1)


def test_another_text_may_be_the_test(written):
    names = f"text:{written(b'abcdefghi')}", written(b"vwxyz", "other.txt")
    dataset = load(*names, length=4, num_train=1)
    assert dataset.train_inputs.tolist() == [[97, 98, 99, 100]]
    assert dataset.test_targets.tolist() == [[119, 120, 121, 122]]
    assert len(load(*names, length=4).train_inputs) == 2


def test_wrong_fields_of_running_text_are_named(written):
    path = f"text:{written(bytes(100))}"
    with pytest.raises(ValueError, match=r"length is 0, but running text needs 1 or"):
        load(path)
    with pytest.raises(
        ValueError, match=r"length is 10, but the text to test on has 10"
    ):
        load(path, length=10)
    with pytest.raises(
        ValueError, match=r"length is 90, but the text to train on has 9"
    ):
        load(path, length=90)
    with pytest.raises(ValueError, match=r"num_train is 10, but there are 9"):
        load(path, length=9, num_train=10)
    with pytest.raises(
        ValueError, match=r"name is 'text:absent', but there is no such"
    ):
        load("text:absent", length=9)
    with pytest.raises(
        ValueError, match=r"test_path is 'absent', but there is no such"
    ):
        load(path, "absent", length=9)
    with pytest.raises(
        ValueError, match=r"normalization is 'standard', but tokens tak"
    ):
        load("sonnets", length=9, normalization="standard")


def test_the_loss_of_a_language_model_is_the_mean_over_all_positions():
    config = small(char_lm.get_config("quick"), num_train=16, num_test=2)
    config.subspace.subset_size = 8
    experiment = Experiment(config)
    inputs, targets = experiment.task.train.inputs, experiment.task.train.targets
    outputs = np.asarray(experiment.model_fn(experiment.params, inputs), np.float64)
    assert outputs.shape == (16, 32, 256)
    likelihoods = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    picked = np.take_along_axis(likelihoods, targets[..., None], -1)
    loss = experiment.task.train(experiment.params)
    np.testing.assert_allclose(loss, -np.log(picked).mean(), rtol=1e-5)


@pytest.mark.slow
def test_language_model_learns_from_the_embedded_text(tmp_path):
    config = small(char_lm.get_config("quick"), num_test=4)
    config.num_steps, config.switch.step, config.eval_every = 30, 20, 10
    config.subspace.subset_size, config.subspace.rank = 8, 2
    record = train.train_and_evaluate(config, tmp_path / "run")
    assert record["status"] == "complete"
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = {(row["arm"], row["step"]): row for row in map(json.loads, lines)}
    # All bytes alike is log 256 = 5.5; blanks, the most frequent, are a sixth.
    assert rows["prefix", 0]["train_loss"] > np.log(256)
    assert rows["bulk_sgd", 30]["train_loss"] < 4.6
    assert rows["bulk_sgd", 30]["test_accuracy"] > 0.1
    assert record["arms"]["bulk_sgd"]["failed_refreshes"] == 0


def test_a_language_model_needs_a_network_for_positions():
    config = char_lm.get_config()
    config.model.name = "transformer"
    wanted = r"'transformer', which has .*\(1, 256\) for one .*32, 256\), one per pos"
    with pytest.raises(ValueError, match=wanted):
        Experiment(config)
