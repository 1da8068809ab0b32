"""The memory that a run needs on each device, and the refusal of what does not fit.

Shapes and layouts give the arrays that a run keeps before anything is compiled. What a
step takes beyond them is the compiler's own count of the executable that then runs.
"""

import os
from typing import NamedTuple

import jax
import numpy as np

from bulk_sgd.lab.from_config import solvers
from bulk_sgd.linalg import basis

# The fields that make a part smaller when they are lowered, and when they are raised.
_REMEDIES = {
    "parameters": ("config.model", "config.sharding.fsdp"),
    "optimizer": ("config.model", "config.sharding.fsdp"),
    "basis": ("config.subspace.rank", "config.sharding.fsdp"),
    "data": (
        "config.data.num_train (with config.data.streaming config.eval_every, "
        "config.subspace.subset_size)",
        "config.sharding.data",
    ),
    "states kept": ("config.subspace.rank", "config.sharding.fsdp"),
    "solver": ("config.subspace.max_basis", "config.sharding.fsdp"),
    "step": ("config.batch_size, config.microbatch_size (0 is all)", ""),
}


class Forecast(NamedTuple):
    """Bytes on each device."""

    parameters: int
    optimizer: int  # moments and the like
    basis: int  # the k eigenvectors, and what else transform and solver carry
    data: int  # all examples, each once, and the feed of one dispatch
    kept: (
        int  # states beside the one that trains: forks, ended arms, initial parameters
    )
    solver: int  # vectors that a solve works with
    step: int | None = None  # gradients, activations, …; None until the compiler counts

    @property
    def parts(self) -> dict[str, int]:
        """The bytes that are known, by the name of their part."""
        return {
            name.replace("kept", "states kept"): size
            for name, size in self._asdict().items()
            if size is not None
        }

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(self.parts.values())

    def __str__(self):
        sizes = ", ".join(
            f"{name} {as_text(size)}" for name, size in self.parts.items()
        )
        return f"memory per device: {as_text(self.total)} ({sizes})"


def of_arrays(experiment, lanes: int = 1, runs: int = 1) -> Forecast:
    """What is certain before anything is compiled.

    So many `lanes` train in lockstep, and the states of so many `runs` are kept.
    """
    state, task, space = experiment.state, experiment.task, experiment.config.subspace
    # Curvature of the training set needs no arrays of its own.
    own = None if task.curvature is task.train else task.curvature
    own_lanes = lanes if space.data == "subset" else 1
    rows = solvers.num_rows(space, basis.size(state.params))
    return Forecast(
        parameters=lanes * _share(state.params),
        optimizer=lanes * _share(state.inner),
        basis=lanes * _share((state.projection, state.step, state.loss)),
        data=_share((task.train, task.test))
        + own_lanes * _share(own)
        + lanes * _share(experiment.feed_shape()),
        kept=runs * (max(1, len(experiment.arms)) * _share(state))
        + runs * _share(state.params),
        solver=lanes * rows * _share(state.params),
    )


def of_program(arrays: Forecast, program: jax.stages.Compiled) -> Forecast | None:
    """The forecast with the compiler's count, None where it does not count.

    `program` is the training program with its solver.
    """
    memory = program.memory_analysis()
    if memory is None:
        return None
    beyond = memory.temp_size_in_bytes
    beyond += memory.output_size_in_bytes - memory.alias_size_in_bytes
    solver = min(arrays.solver, beyond)
    return arrays._replace(solver=solver, step=beyond - solver)


def check(forecast: Forecast, device: jax.Device | None = None):
    """Raises ValueError if a forecast exceeds the memory of a device."""
    limit = capacity(device or jax.local_devices()[0])
    if forecast.total <= limit:
        return
    parts = forecast.parts
    largest = sorted(filter(parts.get, parts), key=parts.get, reverse=True)[:3]
    lower = dict.fromkeys(_REMEDIES[name][0] for name in largest)
    higher = dict.fromkeys(filter(None, (_REMEDIES[name][1] for name in largest)))
    sizes = ", ".join(f"{name} {as_text(parts[name])}" for name in largest)
    at_least = "at least " if forecast.step is None else ""
    raise ValueError(
        f"The run needs {at_least}{as_text(forecast.total)} on each device, which has "
        f"{as_text(limit)} ({sizes}, …): lower {', '.join(lower)}"
        + (f", or raise {', '.join(higher)}" if higher else "")
        + " (config.check_memory = False runs it all the same)."
    )


def capacity(device: jax.Device) -> int:
    """Bytes that a device holds: what it says, or its share of the machine's RAM."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ram // jax.local_device_count()


def num_bytes(tree, shape=lambda x: x.shape) -> int:
    """Bytes of all leaves, or of the parts of them with a `shape`."""
    # Keys of random numbers have a dtype without a size.
    of_one = lambda x: int(np.prod(shape(x))) * getattr(x.dtype, "itemsize", 8)
    return sum(map(of_one, jax.tree.leaves(tree)))


def _share(tree) -> int:
    """Bytes of the part of a tree on one device."""
    return num_bytes(tree, lambda x: x.sharding.shard_shape(x.shape))


def as_text(number: float) -> str:
    """Bytes as text.

    >>> as_text(1_234_567), as_text(0)
    ('1.23 MB', '0 B')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"
