"""Sentences of a table: their words as numbers, and classifiers that train on them."""

import jax
import numpy as np
import pytest
from paths import SHARED
from texts import load, small

from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.training import train
from bulk_sgd.lab.training.experiment import Experiment
from configs import song_sst2

TRAIN = 'sentence\tlabel\nso Good , so true\t1\nbad \t0\ngood " film\t1\n'
TEST = "label\tsentence\n1\tsome true film of three more\n2\tbad\n"


@pytest.fixture
def tables(tmp_path):
    def write(train=TRAIN, test=TEST):
        for name, content in (("train", train), ("test", test)):
            content = content.encode() if isinstance(content, str) else content
            (tmp_path / f"{name}.tsv").write_bytes(content)
        return f"tsv:{tmp_path}/train.tsv", f"{tmp_path}/test.tsv"

    return write


def test_words_are_numbered_by_their_frequency_in_training(tables):
    dataset = load(*tables())
    # good 2, so 2, then once each: " , bad film true
    assert dataset.train_inputs.tolist() == [
        [3, 2, 5, 3, 8],
        [6, 0, 0, 0, 0],
        [2, 4, 7, 0, 0],
    ]
    assert dataset.test_inputs.tolist() == [[1, 8, 7, 1, 1], [6, 0, 0, 0, 0]]
    assert dataset.train_targets.tolist() == [1, 0, 1]
    assert dataset.test_targets.tolist() == [1, 2]
    assert {array.dtype for array in dataset[1:5]} == {np.dtype(np.int32)}
    assert (dataset.num_classes, dataset.vocab_size) == (3, 9)


def test_only_the_selected_sentences_give_words_and_length(tables):
    dataset = load(*tables(), num_train=2, num_test=1, length=2)
    assert dataset.train_inputs.tolist() == [[2, 5], [4, 0]]
    assert dataset.test_inputs.tolist() == [[1, 6]]
    assert (dataset.num_classes, dataset.vocab_size) == (3, 7)


def test_ends_of_lines_and_a_mark_at_the_start_do_not_matter(tables):
    windows = "\ufeff" + TRAIN.replace("\n", "\r\n").removesuffix("\r\n")
    for found, expected in zip(load(*tables(windows)), load(*tables()), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\n", r"its first line names \['text', 'label'\], not sentence an"),
        ("", r"its first line names \[''\], not sentence and label"),
        ("sentence\tlabel\n", "it holds no sentences"),
        ("sentence\tlabel\na\t1\nb\n", "its line 3 has 1 columns, not 2"),
        ("sentence\tlabel\na\tb\t1\n", "its line 2 has 3 columns, not 2"),
        ("sentence\tlabel\n \t1\n", "its line 2 has a sentence without words"),
        ("sentence\tlabel\na\t-1\n", "its line 2 has the label '-1', not a number"),
        (b"sentence\tlabel\n\xff\t1\n", "its text is not UTF-8"),
    ],
)
def test_unsound_tables_are_refused(tables, content, message):
    names = tables(train=content)
    with pytest.raises(ValueError, match=rf"^config\.data\.name is 'tsv:.*{message}"):
        load(*names)
    names = tables(test=content)
    with pytest.raises(ValueError, match=rf"^config\.data\.test_path is '.*{message}"):
        load(*names)


def test_wrong_fields_are_named(tables):
    name, test_path = tables()
    with pytest.raises(ValueError, match=r"data\.test_path is '', but there is no suc"):
        load(name)
    with pytest.raises(ValueError, match=r"name is 'tsv:absent', but there is no such"):
        load("tsv:absent", test_path)
    with pytest.raises(ValueError, match=r"data\.num_train is 4, but there are 3"):
        load(name, test_path, num_train=4)
    with pytest.raises(ValueError, match=r"normalization is 'unit', but tokens take"):
        load(name, test_path, normalization="unit")


@pytest.mark.slow
def test_song_trains_on_a_table(tables, tmp_path):
    name, test_path = tables()
    config = small(song_sst2.get_config("quick"), name=name, test_path=test_path)
    config.data.num_train = config.data.length = 0
    config.batch_size = 2
    record = train.train_and_evaluate(config, tmp_path / "run")
    assert record["status"] == "complete"
    assert record["arms"]["bulk_sgd"]["matvecs"] > 0
    assert record["arms"]["bulk_sgd"]["failed_refreshes"] == 0


def test_networks_of_another_kind_are_refused_before_training(tables):
    name, test_path = tables()
    config = config_lib.default()
    config.data.update(name=name, test_path=test_path, normalization="none")
    config.batch_size = 2
    with pytest.raises(ValueError, match=r"name is 'mlp', but the inputs are tokens"):
        Experiment(config)
    config.model.name = "decoder"
    wanted = r"'decoder', which has outputs .*'tsv:.* needs \(1, 3\), one per example"
    with pytest.raises(ValueError, match=wanted):
        Experiment(config)


def test_sst2_has_the_network_of_song():
    train_path, dev = SHARED / "sst2_1k.tsv", SHARED / "sst2_dev872.tsv"
    if not dev.exists():
        pytest.skip("the SST-2 excerpt is not part of the repository")
    config = song_sst2.get_config()
    config.data.update(name=f"tsv:{train_path}", test_path=str(dev))
    experiment = Experiment(config)
    dataset = experiment.dataset
    assert dataset.train_inputs.shape == (1000, 51)
    assert dataset.test_inputs.shape == (872, 51)
    assert (dataset.num_classes, dataset.vocab_size) == (2, 2970)
    assert np.bincount(dataset.train_targets).tolist() == [458, 542]
    assert sum(leaf.size for leaf in jax.tree.leaves(experiment.params)) == 293_570
