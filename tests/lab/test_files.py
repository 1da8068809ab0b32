"""Files that appear whole."""

import pytest

from bulk_sgd.lab.files import atomic


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
