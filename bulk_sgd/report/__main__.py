"""The command `python -m bulk_sgd.report --workdir=FOLDER`."""

import sys

from absl import app, flags

from bulk_sgd import cli, report


def main(argv: list[str]) -> int:
    """Writes the report of `--workdir`; 1 with one sentence if there is no run."""
    del argv
    try:
        print(report.write_report(flags.FLAGS.workdir))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Only here: the training binary defines a flag of the same name.
    flags.DEFINE_string("workdir", None, "Folder of the run or study to report on.")
    flags.mark_flag_as_required("workdir")
    app.run(main, flags_parser=cli.parse)
