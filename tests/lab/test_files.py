"""Files that appear whole, and the record of a run in its workdir."""

import subprocess

import pytest

from bulk_sgd.lab import config
from bulk_sgd.lab.files import atomic, identities, metrics, record

PRINTS = dict.fromkeys(("data", "program", "tracer"), "x")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write_text(path, "é\n")

    def fail(file):
        file.write(b"half")
        assert path.read_bytes() == "é\n".encode()  # not before the end
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        atomic.write(path, fail)
    assert path.read_text("utf-8") == "é\n"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"

    def write_meanwhile(file):
        file.write(b"first")
        atomic.write_text(path, "second")

    atomic.write(path, write_meanwhile)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/x"])
def test_workdir_that_cannot_be_made(tmp_path, place):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / place
    reason = "is a file" if place == "file" else "cannot be made: N"
    with pytest.raises(ValueError, match="it must be a folder or the name") as caught:
        record.claim(workdir, identities.Identity({}, PRINTS), {})
    assert str(caught.value).startswith(f"workdir is {str(workdir)!r}, which {reason}")


def test_run_that_failed_before_its_first_row_is_replaced(tmp_path):
    plain = identities.plain(config.default())
    record.write(tmp_path, {"status": record.FAILED, "config": plain})
    other = identities.Identity(plain | {"seed": 1}, PRINTS)
    assert record.claim(tmp_path, other, {}) is None
    (tmp_path / metrics.FILE).write_text("{}\n")
    with pytest.raises(ValueError, match=r"differs in config\.seed"):
        record.claim(tmp_path, other, {})
    (tmp_path / metrics.FILE).unlink()
    record.write(tmp_path, {"status": record.RUNNING, "config": plain})
    with pytest.raises(ValueError, match=r"differs in config\.seed"):
        record.claim(tmp_path, other, {})


def test_commit_is_dirty_where_code_or_configs_changed(tmp_path, monkeypatch):
    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True
        )

    for name in ("bulk_sgd/lab/files/record.py", "configs/a.py", "docs/b.md"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(
        record, "__file__", str(tmp_path / "bulk_sgd/lab/files/record.py")
    )
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    clean = record._commit()
    assert len(clean) == 40
    (tmp_path / "docs/b.md").write_text("2")
    assert record._commit() == clean
    (tmp_path / "configs/a.py").write_text("2")
    assert record._commit() == f"{clean}-dirty"
    # The package may be the whole of a repository, and have nothing beside it.
    monkeypatch.setattr(record, "__file__", str(tmp_path / "lab/files/record.py"))
    (tmp_path / "lab/files").mkdir(parents=True)
    (tmp_path / "lab/files/record.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "x")
    assert len(record._commit()) == 40


def test_files_of_an_unfinished_run_are_said_to_be_moved(tmp_path, capsys):
    mine = identities.Identity(identities.plain(config.default()), PRINTS)
    assert record.claim(tmp_path, mine, {}) is None
    record.archive(tmp_path)
    assert not capsys.readouterr().err
    record.write(tmp_path, {"status": record.INTERRUPTED, **mine._asdict()})
    assert record.claim(tmp_path, mine, {}) is None
    record.archive(tmp_path)
    told = f"An unfinished run was there; its files are in {tmp_path}/attempts/1.\n"
    assert capsys.readouterr().err == told
