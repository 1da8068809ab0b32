"""The training binary: `python -m bulk_sgd.main --config=FILE --workdir=FOLDER`."""

from bulk_sgd.lab.commands.start import start

if __name__ == "__main__":
    start("train")
