"""Folders that tests read from."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"  # excerpts that may not be in the repository
