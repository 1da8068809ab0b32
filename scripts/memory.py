"""Memory of AdamW, plain and inside a subspace in factors, on a decoder.

  python scripts/memory.py --config=configs/gpt2_small.py --config.batch_size=1 \
    --config.data.name=tokens:tokens.npy [--steps=20]

AdamW trains alone, with a projection that never changes, and with the solver, each time
in a new process. The script prints the memory that the compiler reserves for a step,
the peak memory of the process as Linux counts it (including compilation), and the
losses. `--steps=0` only compiles. The config provides data and network alone.
"""

import concurrent.futures
import multiprocessing
import resource
import sys

import jax
import numpy as np
import optax
from absl import app, flags
from benchmark_steps import idle
from compile_for_tpu import reserved
from ml_collections import config_flags

import bulk_sgd
from bulk_sgd.lab.files import record
from bulk_sgd.lab.training.experiment import Experiment

_SOLVERS = {
    "AdamW": None,
    "projection": idle(8),
    "with factors=8": bulk_sgd.streaming(factors=8, every=16, gain=0.4),
}


def measure(name: str, config, steps: int) -> dict:
    """What one contestant needs: bytes by the compiler and of the process, losses."""
    experiment = Experiment(config)
    train, params = experiment.task.train, experiment.params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    tx = optax.adamw(optax.linear_schedule(0, 1e-3, 10))
    if (solver := _SOLVERS[name]) is not None:
        tx = optax.chain(tx, bulk_sgd.scale_by_subspace(10, 0.5, 2.0, solver=solver))
    tx = optax.with_extra_args_support(tx)

    def step(params, state, batch):
        loss, grads = jax.value_and_grad(batch)(params)
        updates, state = tx.update(grads, state, params, value_fn=batch)
        return optax.apply_updates(params, updates), state, loss

    state = jax.jit(tx.init)(params)
    batch = jax.jit(lambda train, index: train.take(index))
    index = experiment.indices(0, max(steps, 1))
    program = jax.jit(step, donate_argnums=(0, 1))
    program = program.lower(params, state, batch(train, index[0])).compile()
    losses = []
    for i in range(steps):
        params, state, loss = program(params, state, batch(train, index[i]))
        losses.append(float(loss))
    return {
        "parameters": size,
        "compiler": reserved(program.memory_analysis()),
        "process": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "losses": losses,
    }


def main(argv):
    """Measures one after the other and prints the table."""
    del argv
    config, steps = flags.FLAGS.config, flags.FLAGS.steps
    config.check_memory = False  # it would count the config's own solver
    config.sharding.fsdp, config.microbatch_size = 1, 0
    config.num_steps, config.switch.step = max(steps, 1), 0
    found = {}
    for name in _SOLVERS:
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as alone:
            found[name] = alone.submit(measure, name, config, steps).result()
        row, first = found[name], found["AdamW"]
        copies = row["compiler"] / (4 * row["parameters"])
        print(
            f"{name:16s}{copies:6.2f} copies of the parameters, "
            f"{row['compiler'] / first['compiler']:.2f} times AdamW's; process "
            f"{row['process'] / 1e9:.2f} GB, {row['process'] / first['process']:.2f}; "
            f"losses {np.round(row['losses'], 2).tolist()}",
            flush=True,
        )
    facts = record.provenance()
    print(
        f"{row['parameters']:,} parameters; {facts['device']}, jax "
        f"{facts['versions']['jax']}, commit {facts['git']}"
    )


if __name__ == "__main__":
    sys.path.append(".")  # configs import one another
    config_flags.DEFINE_config_file("config", None, "File with get_config().")
    flags.DEFINE_integer("steps", 20, "Steps to train for; 0 only compiles.")
    app.run(main)
