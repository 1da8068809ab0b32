"""The compile check: what it prints, and what it refuses."""

import importlib.util
import os
import re
import subprocess
import sys

import compile_for_tpu as script
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


def test_wrong_input_is_refused_with_one_sentence():
    result = compile_for_tpu("--topology=v5e:3x5")
    assert result.returncode == 2
    assert "--topology is 'v5e:3x5', for which" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_topologies_are_a_chip_and_a_shape():
    assert script.topology_of("v4:2x2x4") == (script.CHIPS["v4"], 16)
    for name, match in (("v5e", "must be CHIP:SHAPE"), ("v9:2x2", "v5e, v5p, v6e")):
        with pytest.raises(ValueError, match=f"^--topology is .*{match}"):
            script.topology_of(name)


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
