"""The package as it is handed out: built, inspected, and used where nothing else is."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

DATA = {"NOTICE", "mnist_5k.npz", "sonnets.txt"}
EXTRAS = {"lab", "dev", "docs", "bench", "tpu", "cuda", "wandb", "mlflow"}
# Neither this environment's packages nor the repository.
CLEAN = {x: v for x, v in os.environ.items() if x not in ("PYTHONPATH", "PYTHONHOME")}

pytestmark = pytest.mark.slow


def process(*command, cwd):
    return subprocess.run(
        command, cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=900
    )


def call(*command, cwd):
    done = process(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def requirements(name):
    text = (ROOT / f"requirements/{name}.txt").read_text("utf-8")
    return [Requirement(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with an sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("package")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, tracked.stdout.split("\0")):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    call(sys.executable, "-m", "build", "-o", "dist", "source", cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def modules():
    paths = (ROOT / "bulk_sgd").rglob("*.py")
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    data = {f"bulk_sgd/lab/data/embedded/{name}" for name in DATA}
    expected = modules() | data | {"bulk_sgd/py.typed"}
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert {"LICENSE", "NOTICE"} <= {Path(n).name for n in names if "/licenses/" in n}


def test_wheel_requires_what_the_files_list(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    found = [
        Requirement(line.partition(": ")[2])
        for line in lines
        if line.startswith("Requires-Dist: ")
    ]
    expected = requirements("library")
    for extra in EXTRAS:
        for requirement in requirements(extra):
            expected.append(Requirement(f'{requirement}; extra == "{extra}"'))
    plain = lambda all_of: sorted(
        (canonicalize_name(r.name), *map(str, (r.extras, r.specifier, r.marker)))
        for r in all_of
    )
    assert plain(found) == plain(expected)


def test_sdist_holds_what_the_wheel_is_built_from(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    files = {f"requirements/{name}.txt" for name in EXTRAS | {"library"}}
    files |= {"pyproject.toml", "requirements.txt", "LICENSE"}
    assert modules() | files <= names
    folders = {n.partition("/")[0] for n in names if "/" in n}
    assert folders == {"bulk_sgd", "bulk_sgd.egg-info", "requirements"}


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Python with the wheel and what it brings, and the packages from before."""
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    before = set(installed(python))
    install(python, wheel)
    return python, before


def install(python, what):
    options = ("--quiet", "--disable-pip-version-check")
    call(python, "-m", "pip", "install", *options, what, cwd=python.parent)


INSTALLED = """
import importlib.metadata, json
found = importlib.metadata.distributions()
print(json.dumps({x.metadata["Name"]: x.requires or [] for x in found}))
"""


def installed(python):
    """Requirements by name of everything that is installed."""
    found = json.loads(call(python, "-c", INSTALLED, cwd=python.parent))
    return {canonicalize_name(name): requires for name, requires in found.items()}


def closure(names, requires):
    """The named packages with all that they require."""
    found, todo = set(), list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            for requirement in map(Requirement, requires[name]):
                marker = requirement.marker
                if marker is None or marker.evaluate({"extra": ""}):
                    todo.append(requirement.name)
    return found


def first_block(page):
    return re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]


# What a user of the library does first, and whether it has brought in the lab.
EIGENPAIRS = """
matvec = bulk_sgd.hessian(loss, params)
print(bulk_sgd.top_eigenpairs(matvec, params, rank=2).eigenvalues)
import sys
print("lab" if "bulk_sgd.lab" in sys.modules else "library", bulk_sgd.__file__)
"""


def test_library_needs_jax_optax_and_numpy_alone(environment, tmp_path):
    python, before = environment
    requires = installed(python)
    brought = set(requires) - before
    assert brought == closure(["jax", "optax", "numpy"], requires) | {"bulk-sgd"}
    lab = {canonicalize_name(r.name) for r in requirements("lab")}
    assert len(lab - brought) > 5  # absl-py comes with optax

    example = first_block((ROOT / "README.md").read_text("utf-8"))
    (tmp_path / "example.py").write_text(example + EIGENPAIRS)
    printed = call(python, "example.py", cwd=tmp_path)
    # The example ends with its eigenvalues; those of the whole data follow.
    assert re.search(r"eigenvalues \[[^\]]+\]\n\[[\d. e+-]+\]\n", printed), printed
    assert f"library {python.parents[1]}" in printed


@pytest.mark.parametrize("command", ["main", "sweep", "report", "analyze"])
def test_commands_say_how_to_install_the_lab(environment, command, tmp_path):
    python, _ = environment
    ended = process(python, "-m", f"bulk_sgd.{command}", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "matplotlib" in ended.stderr
    assert "pip install '.[lab]'" in ended.stderr


def test_lab_runs_a_config_of_its_own(environment, wheel, tmp_path):
    python, _ = environment
    install(python, f"{wheel}[lab]")
    page = (ROOT / "docs/getting_started.md").read_text("utf-8")
    config = first_block(page[page.index("## Run an experiment") :])
    (tmp_path / "my_config.py").write_text(config)
    (command,) = re.findall(r"^python (-m .*my_config.*)$", page, re.MULTILINE)
    smaller = {"num_steps": 4, "switch.step": 2, "eval_every": 2, "data.num_train": 100}
    fields = [f"--config.{name}={value}" for name, value in smaller.items()]
    printed = call(python, *command.split(), *fields, cwd=tmp_path)
    assert "complete: runs/mine" in printed
    call(python, "-m", "bulk_sgd.report", "--workdir=runs/mine", cwd=tmp_path)
    assert (tmp_path / "runs/mine/report/index.html").exists()
