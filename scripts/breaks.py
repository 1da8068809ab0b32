"""Breaks the code on purpose, one line at a time, and shows that a test notices.

`breaks.toml` beside this file lists the breaks. The script makes each one in a copy of
the tracked files and runs the tests that must then fail. A break is

  caught     one of its tests fails
  survived   they all pass: nothing checks that line any more
  stale      the line is not there exactly once, or its tests are not there or fail
             without the break: bring the list up to date

  python scripts/breaks.py                     all of them
  python scripts/breaks.py --only=Lanczos      those with this in their name
  python scripts/breaks.py --list              the list and what is stale in it

The exit status is 1 unless all are caught.
"""

import argparse
import collections
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIST = pathlib.Path(__file__).with_suffix(".toml")
PYTEST = [sys.executable, "-m", "pytest", "-x", "-m", "", "-p", "no:cacheprovider"]
LIMIT = 900  # seconds for the tests of one break
CAUGHT, SURVIVED, STALE = "caught", "survived", "stale"
PASSED, FAILED = 0, 1  # pytest's exit statuses; with any other no test ran


class Break(NamedTuple):
    """One line of code to break.

    Attributes:
      name: what is broken.
      file: path from the root of the repository.
      line: a fragment that occurs once in the file.
      broken: what replaces it.
      tests: the file of the tests that must fail.
      select: which of them, as pytest's -k takes it.
    """

    name: str
    file: str
    line: str
    broken: str
    tests: str
    select: str

    @property
    def problem(self) -> str:
        """Why the line cannot be broken, "" if it can."""
        path = ROOT / self.file
        count = path.read_text().count(self.line) if path.exists() else 0
        return "" if count == 1 else f"its line occurs {count} times in {self.file}"


def read() -> list[Break]:
    """The breaks of the list, in its order."""
    entries = tomllib.loads(LIST.read_text())
    return [Break(name, **fields) for name, fields in entries.items()]


def run(tests: str, select: str, change: Break | None = None) -> int:
    """Runs tests in a copy of the tracked files; the exit status of pytest."""
    # All copies share the programs that a break does not change.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache")}
    names = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder)
        for name in filter(lambda name: (ROOT / name).exists(), names.splitlines()):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        if change:
            path = copy / change.file
            path.write_text(path.read_text().replace(change.line, change.broken))
        return subprocess.run(
            [*PYTEST, tests, "-k", select],
            cwd=copy,
            env=cache | os.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LIMIT,
        ).returncode


run_unbroken = functools.cache(run)


def judge(change: Break, select_all: str) -> tuple[str, str]:
    """What becomes of a break, and why unless it is caught.

    `select_all` selects the tests of all breaks in the file, which run once unbroken.
    """
    if change.problem:
        return STALE, change.problem
    where = f"{change.tests} -k {change.select!r}"
    try:
        before = run_unbroken(change.tests, select_all)
        if before != PASSED:
            return STALE, f"pytest ends with {before} without a break in {where}"
        after = run(change.tests, change.select, change)
    except subprocess.TimeoutExpired:
        return STALE, f"no answer within {LIMIT} s from {where}"
    if after == PASSED:
        return SURVIVED, where
    if after == FAILED:
        return CAUGHT, ""
    return STALE, f"pytest ends with {after}, without a test, in {where}"


def main() -> int:
    """Judges the chosen breaks; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    wanted = lambda name: not given.only or any(part in name for part in given.only)
    chosen = [change for change in read() if wanted(change.name)]
    if not chosen:
        parser.error(f"no break has {' or '.join(given.only)} in its name")
    if given.list:
        for change in chosen:
            print(f"{change.name}\n  {change.problem or change.tests}")
        return int(any(change.problem for change in chosen))
    selects = collections.defaultdict(set)
    for change in chosen:
        selects[change.tests].add(f"({change.select})")
    counts, start = collections.Counter(), time.perf_counter()
    for change in chosen:
        began = time.perf_counter()
        verdict, reason = judge(change, " or ".join(sorted(selects[change.tests])))
        counts[verdict] += 1
        told = f"{change.name}: {reason}" if reason else change.name
        print(f"{verdict:8} {time.perf_counter() - began:5.0f} s  {told}", flush=True)
    found = ", ".join(f"{counts[x]} {x}" for x in (CAUGHT, SURVIVED, STALE))
    print(f"{len(chosen)} breaks: {found} ({time.perf_counter() - start:.0f} s)")
    return int(counts[CAUGHT] < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
