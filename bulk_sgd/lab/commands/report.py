"""The command `python -m bulk_sgd.report --workdir=FOLDER`."""

import sys

from absl import flags

from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.report.write import write_report

flags.disclaim_key_flags()


def main(argv: list[str]) -> int:
    """Writes the report of `--workdir`; 1 with one sentence if there is no run."""
    del argv
    try:
        print(write_report(flags.FLAGS.workdir))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run():
    """Entry point of the command line."""
    flags.DEFINE_string("workdir", None, "Folder of the run or study to report on.")
    cli.run(main, "workdir")
