"""Writes a report: `python -m bulk_sgd.report --workdir=FOLDER`."""

from bulk_sgd.lab.commands.start import start

if __name__ == "__main__":
    start("report")
