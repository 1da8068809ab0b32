"""The code of the documentation runs as it stands, and does what the pages say."""

import math
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from pages import LONG, PAGES, blocks, check, run
from paths import ROOT

import bulk_sgd
from bulk_sgd.lab import config as config_lib
from bulk_sgd.lab.data import sources
from bulk_sgd.lab.sweep import grid
from bulk_sgd.linalg import basis


@pytest.mark.parametrize("page", [page for page in PAGES if page not in LONG])
def test_python_blocks_run(page):
    check(page)


def test_readme_learns_by_mini_batches():
    (names,), printed = run("README.md")
    first, last = map(float, re.findall(r"loss (\S+)", printed))
    assert last < 0.1 * first
    get = lambda name: optax.tree_utils.tree_get(names["state"], name)
    assert get("total_matvecs") == 100  # one per step
    assert get("failed_refreshes") == 0
    assert jnp.all(get("eigenvalues") > 0)


def test_config_of_getting_started_is_valid():
    names = {}
    exec(blocks("docs/getting_started.md", "python")[-1], names)
    config = names["get_config"]()
    assert config_lib.validate(config) is None
    config.switch.step = config.num_steps + 1
    with pytest.raises(ValueError, match=r"config\.switch\.step is 401"):
        config_lib.validate(config)


@pytest.fixture
def own_data(tmp_path):
    """The first names of the page on data, and the archive that it writes."""
    names = dict(run("docs/own_data.md")[0][0])
    source = blocks("docs/own_data.md", "python")[1]
    exec(source.replace("my_data.npz", str(tmp_path / "my_data.npz")), names)
    return names, tmp_path / "my_data.npz"


def test_own_data_are_learned_and_load(own_data):
    names, path = own_data
    assert names["data"](names["params"]) < 0.5 < math.log(2)
    assert optax.tree_utils.tree_get(names["state"], "refreshes") == 2
    fields = config_lib.default().data
    fields.name, fields.normalization = str(path), "standard"
    loaded = sources.load(fields)
    assert loaded.train_inputs.shape == (150, 8)
    np.testing.assert_array_equal(loaded.test_targets, names["labels"][150:])


@pytest.mark.slow
def test_own_data_train_with_the_command_of_the_page(own_data):
    (command,) = blocks("docs/own_data.md", "bash")
    command = command.replace("\\\n", "").replace("my_data.npz", str(own_data[1]))
    command = command.replace("runs/mine", str(own_data[1].parent / "run"))
    _, *arguments = shlex.split(command)
    smaller = ["--config.num_steps=20", "--config.switch.step=10"]
    done = subprocess.run(
        [sys.executable, *arguments, *smaller],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout


def test_own_solvers_find_what_they_say():
    after, printed = run("docs/own_solver.md")
    lanczos, recent = map(float, printed.split())
    assert lanczos > 0.99
    assert recent < 0.5
    names = after[-1]
    params, exact = names["params"], names["exact"]
    matvec = bulk_sgd.hessian(names["data"], params)
    found, _ = names["dense"]().solve(matvec, exact, (), params, None)
    for row, eigenvalue in enumerate(found.eigenvalues):
        vector = basis.row(found.eigenvectors, row)
        residual = basis.subtract(matvec(vector), basis.scale(eigenvalue, vector))
        assert basis.norm(residual) < 1e-5  # rounding of float32
    assert found.eigenvalues[0] > found.eigenvalues[1]
    solver = names["recent_updates"]()
    history = solver.init(params, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    updates = [basis.random_normal(key, params) for key in keys]
    for update in updates:
        recent, history = solver.solve(None, found, history, update, None)
    alignments = [float(recent.alignment(update)) for update in updates]
    assert alignments[0] < 0.9
    np.testing.assert_allclose(alignments[1:], 1, rtol=1e-5)


def test_sweep_of_the_study_is_valid():
    names = run("docs/study.md")[0][0]
    cells = names["get_sweep"]()
    assert len(cells) == 2 * 2 * 3
    base = names["get_config"]()
    assert {grid.apply(base, cell).subspace.rank for cell in cells} == {5, 10}
