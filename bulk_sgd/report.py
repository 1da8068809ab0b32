"""Writes a report: `python -m bulk_sgd.report --workdir=FOLDER`."""

from bulk_sgd.lab.commands.start import command

if __name__ == "__main__":
    command("report")()
