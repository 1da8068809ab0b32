"""The package as it is handed out: built, inspected, and used where nothing else is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

DATA = {"NOTICE", "mnist_5k.npz", "sonnets.txt"}
# Neither this environment's packages nor the repository.
CLEAN = {x: v for x, v in os.environ.items() if x not in ("PYTHONPATH", "PYTHONHOME")}

pytestmark = pytest.mark.slow


def call(*command, cwd):
    done = subprocess.run(
        command, cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


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


def modules():
    paths = (ROOT / "bulk_sgd").rglob("*.py")
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(n for n in names if n.endswith("METADATA"))
        requires = archive.read(metadata).decode()
    data = {f"bulk_sgd/lab/data/embedded/{name}" for name in DATA}
    expected = modules() | data | {"bulk_sgd/py.typed"}
    assert {n for n in names if ".dist-info/" not in n} == expected
    assert {"LICENSE", "NOTICE"} <= {Path(n).name for n in names if "/licenses/" in n}
    wanted = (ROOT / "requirements.txt").read_text().split()
    found = re.findall(r"^Requires-Dist: ([^;\n]+)$", requires, re.MULTILINE)
    assert {x.replace("-", "_") for x in found} == {x.replace("-", "_") for x in wanted}


def test_sdist_holds_what_the_wheel_is_built_from(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert modules() | {"pyproject.toml", "requirements.txt", "LICENSE"} <= names
    folders = {n.partition("/")[0] for n in names if "/" in n}
    assert folders == {"bulk_sgd", "bulk_sgd.egg-info"}


def test_wheel_runs_the_readme_and_a_config_of_its_own(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    call(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    call(python, *install, cwd=tmp_path)

    def first_block(page):
        return re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]

    example = first_block((ROOT / "README.md").read_text("utf-8"))
    (tmp_path / "example.py").write_text(example + "print(bulk_sgd.__file__)\n")
    printed = call(python, "example.py", cwd=tmp_path)
    assert "[100.]" in printed
    assert str(tmp_path / "venv") in printed

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
