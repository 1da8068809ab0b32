"""Writes a report: `python -m bulk_sgd.report --workdir=FOLDER`."""

from bulk_sgd.lab.commands.report import run

if __name__ == "__main__":
    run()
