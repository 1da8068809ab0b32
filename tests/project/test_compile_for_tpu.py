"""The compile check: what it prints, and what it refuses."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

pytestmark = pytest.mark.slow

CONFIG = (
    "--config=configs/mnist_mlp.py:quick",
    "--config.model.hidden=(32,)",
    "--config.data.num_train=320",
    "--config.data.num_test=80",
    "--config.subspace.subset_size=160",
    "--config.subspace.rank=4",
)


def compile_for_tpu(*more):
    return subprocess.run(
        [sys.executable, "scripts/compile_for_tpu.py", *CONFIG, *more],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize(
    ("flag", "match"),
    [
        ("--topology=v5e", "--topology is 'v5e'; it must be CHIP:SHAPE"),
        ("--topology=v9:2x2", "a chip among v4, v5e, v5p, v6e"),
        ("--topology=v5e:3x5", "--topology is 'v5e:3x5', for which"),
        ("--config.rang=3", "no field 'rang'"),
    ],
)
def test_wrong_input_is_refused_with_one_sentence(flag, match):
    result = compile_for_tpu(flag)
    assert result.returncode == 2
    assert match in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler, pip install '.[tpu]'",
)
def test_a_pod_of_16_chips_is_compiled_for():
    refused = compile_for_tpu("--config.batch_size=50")
    assert refused.returncode == 2
    assert "multiple of 16" in refused.stderr
    replicated = compile_for_tpu("--config.batch_size=64")
    sharded = compile_for_tpu("--config.batch_size=64", "--config.sharding.fsdp=4")
    for result in (replicated, sharded):
        assert result.returncode == 0, result.stderr
        assert "on 16 x TPU v5 lite" in result.stdout
        assert "A step with 20 products of the solver takes" in result.stdout
    assert "all-gather" not in replicated.stdout
    assert "all-gather" in sharded.stdout
    # A product of the solver takes one all-reduce more than a step without it.
    plain, solver = map(int, re.findall(r"all-reduce +(\d+) x", replicated.stdout))
    assert solver == plain + 1
