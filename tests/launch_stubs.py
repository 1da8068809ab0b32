"""Stubs of what launchers call, which note how they were called; for the tests."""

import subprocess

import pytest
from paths import ROOT

LAUNCH = ROOT / "scripts" / "launch"
COMMAND = ("--", "python", "-m", "bulk_sgd.main", "--config.arms=('sgd', 'dom_sgd')")
JOB = (*COMMAND, "--workdir=w")
STUB = """#!/usr/bin/env bash
printf '%s|' "${{0##*/}}" "$@" >>{calls}
echo >>{calls}
{body}
"""


class Cloud:
    """A PATH with stubs, and the calls that they got."""

    def __init__(self, folder):
        self.folder = folder
        self.calls_file = folder / "calls"
        self.environment = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "HOME": str(folder),
            "POLL": "0",
            "PYTHON_ENV": str(folder),
        }

    def stub(self, name, body=""):
        path = self.folder / name
        path.write_text(STUB.format(calls=self.calls_file, body=body))
        path.chmod(0o755)

    def run(self, script, *arguments, **environment):
        return subprocess.run(
            [LAUNCH / script, *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self):
        if not self.calls_file.exists():
            return []
        # A call may span lines: each ends with a bar of its own.
        text = self.calls_file.read_text()
        return [call.strip("\n").split("|") for call in text.split("|\n") if call]


@pytest.fixture(name="cloud")
def cloud_fixture(tmp_path):
    made = Cloud(tmp_path)
    for name in ("gcloud", "sbatch", "xpk", "kubectl", "docker"):
        made.stub(name, "cat >/dev/null" if name in ("sbatch", "kubectl") else "")
    made.stub("git", 'case "$*" in *cat-file*mine*) exit 1; esac')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/true")
    return made
