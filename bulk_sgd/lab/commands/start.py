"""Finds a command, provided that the lab's packages are installed."""

import importlib
import importlib.metadata
import re
import sys


def command(name: str):
    """Returns the entry point of `bulk_sgd.lab.commands.NAME`.

    The caller starts it, so that absl's --help lists the flags of the main module.
    """
    if missing := ", ".join(_missing()):
        print(
            f"This command needs the lab, and these packages are missing: {missing}; "
            "install them with pip install '.[lab]' in a clone of bulk_sgd.",
            file=sys.stderr,
        )
        sys.exit(2)
    return importlib.import_module(f"bulk_sgd.lab.commands.{name}").run


def _missing():
    try:
        requirements = importlib.metadata.requires("bulk_sgd") or []
    except importlib.metadata.PackageNotFoundError:
        return  # run from a checkout that nobody installed
    for requirement in requirements:
        name, marker = re.match(r"([\w.-]+)[^;]*(.*)", requirement).groups()
        try:
            if "lab" in marker:
                importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            yield name
