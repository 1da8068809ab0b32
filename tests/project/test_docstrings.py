import doctest
import importlib
import pkgutil

import pytest

import bulk_sgd

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(bulk_sgd.__path__, "bulk_sgd.")
    if not info.name.endswith("__main__")
)


def test_modules_are_found():
    assert {"bulk_sgd.solvers.lanczos", "bulk_sgd.transforms"} <= set(MODULES)


LONG = (
    "bulk_sgd.lab.analysis.analyze",
    "bulk_sgd.lab.models.build",
    "bulk_sgd.lab.models.convnets",
    "bulk_sgd.lab.models.transformer",
    "bulk_sgd.lab.training.train",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(m, marks=pytest.mark.slow if m in LONG else []) for m in MODULES],
)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
