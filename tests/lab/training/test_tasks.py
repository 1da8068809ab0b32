"""Every shipped task trains as a loop by hand: its data, their order, its loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_sets import write_images
from paths import ROOT

from bulk_sgd.lab.data import embedded
from bulk_sgd.lab.data.batches import batch_indices
from bulk_sgd.lab.models.build import build_model
from bulk_sgd.lab.training.experiment import Experiment
from configs import (
    char_lm,
    mnist_cnn,
    mnist_mlp,
    song_cifar10,
    song_mnist5k,
    song_sst2,
    vit_mnist,
)

pytestmark = pytest.mark.slow  # each test trains, or compiles solves of its own

STEPS = 5
# At level 0, which conftest.py sets, XLA 0.10 compiles a step of VGG-11 wrong.
LEVEL = {"xla_backend_optimization_level": 1}


def mnist(tmp_path):
    del tmp_path
    with np.load(embedded.__path__[0] + "/mnist_5k.npz") as arrays:
        x = arrays["x_train"][:20].reshape(20, 28, 28, 1) / np.float32(255)
        return {"num_train": 20, "num_test": 10}, x, arrays["y_train"][:20]


def standardised(x):
    x = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    return x.astype(np.float32)


def standardised_mnist(tmp_path):
    fields, x, y = mnist(tmp_path)
    return fields, standardised(x), y


def cifar(tmp_path):
    arrays = write_images(tmp_path / "images.npz", 20)
    fields = {"name": f"{tmp_path}/images.npz", "num_train": 0, "num_test": 0}
    return fields, standardised(arrays["x_train"] / 255), arrays["y_train"]


def sentences(tmp_path):
    # A word's number is its rank by how often it occurs; 1 is for unknown ones.
    words = ["", "", "a", "b", "c", "d"]
    x = 2 + np.array([np.roll([0, 0, 0, 1], i) for i in range(20)])
    x[::2, 1], x[::4, 2], x[::7, 3] = 3, 4, 5
    counts = np.bincount(x.ravel())[2:]
    assert len(counts) == 4
    assert np.all(np.diff(counts) < 0)
    y = np.arange(20) % 3 % 2
    for part in ("train", "test"):
        lines = [
            f"{' '.join(words[i] for i in row)}\t{label}\n" for row, label in zip(x, y)
        ]
        (tmp_path / part).write_text("sentence\tlabel\n" + "".join(lines))
    fields = {"name": f"tsv:{tmp_path}/train", "test_path": f"{tmp_path}/test"}
    return fields | {"num_train": 0, "length": 0}, x, y


def text(tmp_path):
    content = np.random.default_rng(0).integers(256, size=200).astype(np.uint8)
    (tmp_path / "text").write_bytes(content.tobytes())
    ids = content.astype(int)
    x, y = ids[:160].reshape(20, 8), ids[1:161].reshape(20, 8)
    return {"name": f"text:{tmp_path}/text", "num_train": 20, "length": 8}, x, y


def squared_error(outputs, y):
    return jnp.sum((outputs - jnp.eye(outputs.shape[-1])[y]) ** 2, axis=-1)


def half_squared_error(outputs, y):
    return 0.5 * squared_error(outputs, y)


def cross_entropy(outputs, y):
    chances = jnp.take_along_axis(outputs, y[..., None], -1)[..., 0]
    return jax.scipy.special.logsumexp(outputs, axis=-1) - chances


SMALL = {"width": 8, "num_layers": 1, "num_heads": 2, "scan_layers": False}
TASKS = {
    "mnist_mlp": (mnist_mlp, mnist, half_squared_error, {"hidden": (8, 8)}),
    "song_mnist5k": (
        song_mnist5k, standardised_mnist, squared_error, {"hidden": (8, 8)}
    ),
    "mnist_cnn": (mnist_cnn, mnist, cross_entropy, {"channels": (2, 2)}),
    "vit_mnist": (vit_mnist, mnist, cross_entropy, SMALL),
    "cifar10, cnn": (song_cifar10, cifar, squared_error, {"channels": (2, 2)}),
    "cifar10, resnet8": (
        song_cifar10, cifar, squared_error,
        {"name": "resnet8", "width": 2, "num_groups": 2},
    ),
    "cifar10, vgg11": (
        song_cifar10, cifar, squared_error,
        {"name": "vgg11", "width": 2, "num_groups": 2},
    ),
    "sst2": (song_sst2, sentences, squared_error, SMALL),
    "char_lm": (char_lm, text, cross_entropy, SMALL),
}  # fmt: skip


def test_no_task_is_left_out():
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    tested = {module.__name__.removeprefix("configs.") for module, *_ in TASKS.values()}
    elsewhere = {"default", "own", "label_noise", "gpt2_small"}  # the last is too large
    assert tested == names - elsewhere


@pytest.mark.parametrize("task", TASKS)
def test_a_task_trains_as_a_loop_by_hand(task, tmp_path):
    module, prepare, loss_fn, model = TASKS[task]
    fields, x, y = prepare(tmp_path)
    config = module.get_config("quick")
    config.data.update(fields)
    config.model.update(model)
    config.subspace.subset_size = config.batch_size = 6
    config.num_steps = config.eval_every = STEPS
    config.switch.step = 2
    if config.optimizer.warmup_steps:
        config.optimizer.warmup_steps = 3  # steps beyond it, too
    made = Experiment(config)
    arguments = made.start(), made.task, made.indices(0), STEPS
    program = made.programs.train.lower(*arguments, projected=False)
    state, trace = program.compile(LEVEL)(*arguments)

    kind = config.model.name
    vocab_size = {"transformer": int(x.max()) + 1, "decoder": 256}.get(kind, 0)
    num_outputs = {"transformer": 2, "decoder": 256}.get(kind, 10)
    model_fn, params = build_model(
        config.model, x.shape[1:], num_outputs, config.seed, vocab_size
    )

    @functools.partial(jax.jit, compiler_options=LEVEL)
    def value_and_grad(params, x, y):
        mean = lambda params: jnp.mean(loss_fn(model_fn(params, x), y))
        return jax.value_and_grad(mean)(params)

    losses, optimizer = [], config.optimizer
    for step, index in enumerate(batch_indices(config.seed, 0, STEPS, 20, 6)):
        loss, grads = value_and_grad(params, x[index], y[index])
        losses.append(loss)
        rate = optimizer.learning_rate
        if optimizer.warmup_steps:
            rate *= min(step / optimizer.warmup_steps, 1)
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grads)
    # The same float32 operations in another program.
    np.testing.assert_allclose(trace.batch_losses, losses, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(params)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
