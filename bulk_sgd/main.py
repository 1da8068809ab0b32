"""The training binary: `python -m bulk_sgd.main --config=FILE --workdir=FOLDER`."""

from bulk_sgd.lab.commands.start import command

if __name__ == "__main__":
    command("train")()
