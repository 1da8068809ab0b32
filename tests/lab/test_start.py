"""Commands start where the lab is installed, and elsewhere say what is missing."""

import importlib.metadata
import types

import pytest

from bulk_sgd.lab.commands import start


@pytest.fixture
def started(monkeypatch):
    """Names of the commands that were started."""
    names = []
    module = lambda name: types.SimpleNamespace(run=lambda: names.append(name))
    monkeypatch.setattr(start.importlib, "import_module", module)
    return names


def test_missing_packages_are_named_in_one_sentence(monkeypatch, started, capsys):
    requires = [
        "absent-library",
        'absent.one>=1; extra == "lab"',
        'pytest>=8; extra == "lab"',
        'absent_two[x]>=2; extra == "lab"',
        'absent-tool; extra == "dev"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requires)
    with pytest.raises(SystemExit) as ended:
        start.command("train")
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert "missing: absent.one, absent_two; install" in told
    assert told.count("\n") == 1
    assert started == []


def test_a_checkout_that_is_not_installed_starts(monkeypatch, started):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    start.command("train")()
    assert started == ["bulk_sgd.lab.commands.train"]
