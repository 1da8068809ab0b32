"""The command `python -m bulk_sgd.report --workdir=FOLDER`.

`--workdir A B C --labels=a,b,c` writes a page that compares the three.
"""

import sys

from absl import flags

from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.report.write import write_report

flags.disclaim_key_flags()


def main(argv: list[str]) -> int:
    """Writes the report of `--workdir`; 1 with one sentence if there is no run."""
    values = flags.FLAGS
    try:
        others, labels = argv[1:], values.labels or ()
        print(write_report(values.workdir, *others, labels=labels, out=values.out))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run():
    """Entry point of the command line."""
    flags.DEFINE_string("workdir", None, "Folder of the run or study to report on.")
    flags.DEFINE_list("labels", None, "One label for each folder, with commas.")
    flags.DEFINE_string("out", None, "Folder to write to, by default in WORKDIR.")
    cli.run(main, "workdir", positional=True)
