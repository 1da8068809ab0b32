"""Compiles the training programs of a config for a TPU pod, without a TPU.

  pip install '.[lab,tpu]'
  python scripts/compile_for_tpu.py --config=configs/mnist_mlp.py --topology=v5e:4x4 \
    --config.batch_size=64 --config.data.num_train=4992 --config.data.num_test=992 \
    --config.subspace.subset_size=992

Prints the memory forecast of the run, what one device holds, computes and sends, as the
real compiler lays it out, and how long a step takes at best by the chip's published
figures. Programs are compiled from shapes alone: nothing is allocated. XLA counts the
body of a loop once, so that "with the solver" is a step with one product; a step with m
products takes the plain one and m times the difference.
"""

import math
import os
import re
import sys
import time
from typing import NamedTuple
from unittest import mock

from absl import flags
from ml_collections import config_flags

from bulk_sgd.lab.commands import cli


class Chip(NamedTuple):
    """Published figures: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm.

    Attributes:
      flops: bfloat16 operations per second.
      memory: bytes of HBM.
      bandwidth: bytes per second between HBM and chip.
      link: bytes per second between chips, over all links of one.
      type_prefix: of the accelerator type.
      cores: that the accelerator type counts per chip.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    type_prefix: str
    cores: int = 1


CHIPS = {
    "v4": Chip(275e12, 32e9, 1228e9, 300e9, "v4", 2),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, "v5litepod"),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, "v5p", 2),
    "v6e": Chip(918e12, 32e9, 1640e9, 448e9, "v6e"),
}
# A float32 product at precision "highest", as the solver asks for, is six of bfloat16.
_PASSES = 6


def topology_of(name: str) -> tuple[Chip, int]:
    """The chip and the number of chips of a topology such as "v5e:4x4"."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match or match[1] not in CHIPS:
        raise ValueError(
            f"--topology is {name!r}; it must be CHIP:SHAPE such as v5e:4x4 or "
            f"v4:2x2x4, with a chip among {', '.join(CHIPS)}."
        )
    return CHIPS[match[1]], math.prod(map(int, match[2].split("x")))


def devices_of(name: str):
    """Descriptions of the devices of a topology, for the compiler alone."""
    chip, num_chips = topology_of(name)
    os.environ.update(
        TPU_ACCELERATOR_TYPE=f"{chip.type_prefix}-{num_chips * chip.cores}",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_SKIP_MDS_QUERY="1",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # no TPU is touched
        TPU_STDERR_LOG_LEVEL="3",
        JAX_PLATFORMS="cpu",
    )
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except Exception as error:  # whatever the plugin raises
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ValueError(
            f"--topology is {name!r}, for which the TPU compiler gives no devices "
            f"({reason}); it needs pip install '.[lab,tpu]' and a shape that exists."
        ) from error


def compile_programs(config, devices):
    """The forecast, and the compiled program, {"plain": …, "with the solver": …}."""
    import jax

    from bulk_sgd.lab.training import memory_forecast
    from bulk_sgd.lab.training.experiment import Experiment

    # The models ask for it, and would choose what is fast on this machine.
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        made = Experiment(config, devices=devices)
        arrays = memory_forecast.of_arrays(made)
        print(arrays, flush=True)
        arguments = made.state, made.task, made.feed_shape(), 1, made.scalars()
        compiled = {
            name: made.programs.compiled(*arguments, projected=projected)
            for name, projected in (("plain", False), ("with the solver", True))
        }
    return memory_forecast.of_program(arrays, compiled["with the solver"]), compiled


def reserved(memory) -> int:
    """The bytes that a program reserves, by its `memory_analysis()`."""
    beyond = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + beyond


def describe(compiled, chip: Chip) -> tuple[list[str], float]:
    """Lines about one program, and the seconds that its roofline allows."""
    from collectives import KINDS, collectives

    memory = compiled.memory_analysis()
    costs = compiled.cost_analysis()
    sent = collectives(compiled.as_text())
    lines = [
        f"memory       {_si(reserved(memory))}B of {_si(chip.memory)}B: arguments "
        f"{_si(memory.argument_size_in_bytes)}B, temporary "
        f"{_si(memory.temp_size_in_bytes)}B; alive at one time "
        f"{_si(memory.peak_memory_in_bytes)}B",
        f"computes     {_si(costs['flops'])}FLOP, moves "
        f"{_si(costs['bytes accessed'])}B",
    ]
    for kind in KINDS:
        sizes = [one.num_bytes for one in sent if one.kind == kind]
        if sizes:
            lines.append(
                f"{kind:<12} {len(sizes)} x, together {_si(sum(sizes))}B, the largest "
                f"{_si(max(sizes))}B"
            )
    seconds = {
        "arithmetic": _PASSES * costs["flops"] / chip.flops,
        "memory": costs["bytes accessed"] / chip.bandwidth,
        "links": sum(one.num_bytes for one in sent) / chip.link,
    }
    bound = max(seconds, key=seconds.get)
    parts = ", ".join(f"{name} {_si(value)}s" for name, value in seconds.items())
    lines.append(f"at best      {_si(seconds[bound])}s, bound by {bound} ({parts})")
    return lines, seconds[bound]


def _si(number: float) -> str:
    """A number with three digits and the prefix of its unit."""
    for exponent, prefix in (
        (12, "T"),
        (9, "G"),
        (6, "M"),
        (3, "k"),
        (0, ""),
        (-3, "m"),
    ):
        if number >= 10**exponent or (prefix == "" and number == 0):
            return f"{number / 10**exponent:.3g} {prefix}"
    return f"{number * 1e6:.3g} µ"


def main(argv):
    """Prints the report."""
    del argv
    cli.prepare()
    values = flags.FLAGS
    with cli.refusing():
        chip, _ = topology_of(values.topology)
        devices = devices_of(values.topology)
        start = time.perf_counter()
        forecast, compiled = compile_programs(values.config, devices)
        print(
            f"{values.config.name} on {len(devices)} x {devices[0].device_kind}, "
            f"compiled in {time.perf_counter() - start:.0f} s"
        )
        best = {}
        for name, program in compiled.items():
            lines, best[name] = describe(program, chip)
            print(f"\nOne step, {name}, on each device:", *lines, sep="\n  ")
        print(f"\nThe whole run, {forecast}.")
        product = max(0.0, best["with the solver"] - best["plain"])
        refresh = best["plain"] + values.matvecs * product
        print(
            f"\nA step with {values.matvecs} products of the solver takes "
            f"{_si(refresh)}s at best; latencies come on top."
        )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "File with get_config().")
    flags.DEFINE_string("topology", "v5e:4x4", "CHIP:SHAPE, such as v5e:4x4.")
    flags.DEFINE_integer("matvecs", 20, "Products in a step that is estimated.")
    sys.path.insert(0, os.getcwd())  # for configs that import one another
    cli.run(main, "config")
