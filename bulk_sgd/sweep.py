"""Runs a sweep: `python -m bulk_sgd.sweep --config=FILE --workdir=FOLDER`."""

from bulk_sgd.lab.commands.start import command

if __name__ == "__main__":
    command("sweep")()
