"""What the command line programs refuse and say, each in one sentence."""

import re
import subprocess
import sys

import pytest
from absl import flags
from conftest import ROOT
from ml_collections import config_flags

from bulk_sgd.lab import config
from bulk_sgd.lab.commands import cli
from bulk_sgd.lab.files import identities, metrics, record

DEFAULT = "from bulk_sgd.lab.config import default as get_config\n"
PRINTS = dict.fromkeys(("data", "program", "tracer"), "x")
CONFIG = "def get_config(variant=''):\n  raise ValueError(f'variant is {variant!r}')\n"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.py", None, "is no file in "),
        (".", None, "is no file in "),
        ("image.npz", b"PK\0\1", "with get_config(), but is not Python."),
        ("bytes.npz", b"\xff\xfe", "with get_config(), but is not Python."),
        ("typo.py", b"x = 1\ndef get_config(:", "but is not Python (line 2)."),
        ("other.py", b"x = 1", "which does not define get_config()."),
    ],
)
@pytest.mark.parametrize("words", [["--config={}:quick"], ["-config", "{}"]])
def test_config_that_is_no_config(tmp_path, capsys, name, content, sentence, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        cli.parse(["main", *(word.format(path) for word in words)])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith(f"--config is '{path}'")
    assert sentence in told
    assert told.count("\n") == 1


def program(name, *arguments, cwd=None):
    command = [sys.executable, "-m", f"bulk_sgd.{name}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """What the program says to a config file of some content and to another flag."""

    def parse(content, variant="", flag="--steps=1"):
        path = tmp_path / "config.py"
        path.write_text(content)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        flags.DEFINE_integer("steps", 1, "", flag_values=values)
        monkeypatch.setattr(cli.flags, "FLAGS", values)
        argv = ["main", f"--config={path}{variant}", flag]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            cli.parse(argv)
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    return parse


def test_config_that_fails_ends_with_its_reason(refusal):
    assert refusal(CONFIG, ":slow") == "variant is 'slow'\n"
    told = refusal("import absent_module as get_config\n")
    assert "imports absent_module, which is not" in told


def test_config_of_another_type_ends_with_its_reason(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("get_config = int\n")
    done = program("main", f"--config={path}:3", f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    assert "config is 3; it must be a ConfigDict" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["main", "report", "sweep"])
def test_missing_flag_is_named(name):
    done = program(name)
    assert done.returncode == 2
    assert done.stderr in ("--workdir is missing.\n", "--config is missing.\n")


def test_field_that_does_nothing_is_refused(tmp_path):
    flags = f"--workdir={tmp_path}/run", "--config.subspace.factors=2"
    done = program("main", f"--config={ROOT}/configs/default.py", *flags)
    assert done.returncode == 2
    assert done.stderr == (
        "config.subspace.factors is 2, which config.subspace.solver = 'lanczos' does "
        "not use, only power, streaming.\n"
    )


def test_help_needs_no_config_and_shows_what_programs_share():
    done = program("sweep", "--help")
    assert "--config" in done.stdout
    assert "--distributed" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--config.subspace.rank=abc", "rank is 'abc'; it must be an integer."),
        ("--config.optimizer.learning_rate=a=b", "rate is 'a=b'; it must be a number."),
        ("--config.progress=maybe", "progress is 'maybe'; it must be true or false."),
        ("--steps=many", "--steps is 'many'; it must be an integer."),
    ],
)
def test_value_of_another_type_is_refused_with_its_field(refusal, word, sentence):
    told = refusal(DEFAULT, flag=word)
    assert told.startswith(f"{word.partition('=')[0]} is ")
    assert told.endswith(sentence + "\n")


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--config.rang=3", "--config has no field 'rang'"),
        (
            "--config.subspace.rang=3",
            '--config has no field \'subspace.rang\'.*mean "rank" instead of "rang"?',
        ),
        ("--config.subspace.evry=3", "--config has no field 'subspace.evry'"),
        ("--config.model.options.x=3", ".*'model.options.x'; set it in get_config fi"),
        ("extra", r"Unexpected arguments \['extra'\]"),
    ],
)
def test_words_that_name_no_field_are_refused(refusal, word, sentence):
    assert re.match(sentence, refusal(DEFAULT, flag=word))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x.batchsize = 3", "no field 'batchsize'; did you mean 'batch_size'?"),
        ("x.subspace.rang = 3", "no field 'rang'; did you mean 'rank'?"),
        ("x.seed.a", "AttributeError: 'int' object has no attribute 'a'."),
    ],
)
def test_misspelt_field_of_a_file_is_told_with_its_line(refusal, line, problem):
    start = "from bulk_sgd.lab.config import default\n\ndef get_config():\n"
    told = refusal(f"{start}  x = default()\n  {line}\n  return x\n")
    assert told.startswith("--config: /")
    assert f"config.py, line 5, {line!r}: " in told
    assert told.endswith(f"{problem}\n")


@pytest.mark.parametrize("form", ["--config.{}={}", "--config.{} {}"])
def test_the_last_value_of_a_field_wins(monkeypatch, form):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    settings = [("model.hidden", "(5,)"), ("optimizer.momentum", "0.5"), ("seed", "1")]
    settings += [("seed", "2"), ("model.hidden", "(7,)"), ("optimizer.momentum", "-1")]
    words = " ".join(form.format(*setting) for setting in settings).split()
    argv = ["main", f"--config={ROOT}/configs/default.py", "--noconfig.progress"]
    argv += [*words, "--config.tensorboard"]
    monkeypatch.setattr(sys, "argv", argv)
    assert cli.parse(argv) == ["main"]
    found = values.config
    assert (found.model.hidden, found.seed) == ((7,), 2)
    assert (found.optimizer.momentum, found.progress) == (-1, False)


@pytest.mark.parametrize("form", ["--config.{}={}", "--config.{} {}"])
@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("arms", "sgd,bulk_sgd,scales(0.5,2)", ("sgd", "bulk_sgd", "scales(0.5,2)")),
        ("arms", "('sgd','scales(0.5,2)')", ("sgd", "scales(0.5,2)")),
        ("arms", "(sgd,scales(0.5,2))", ("sgd", "scales(0.5,2)")),
        ("arms", "scales(0.5,2)", ("scales(0.5,2)",)),
        ("arms", "sgd", ("sgd",)),
        ("model.hidden", "5,7", (5, 7)),
        ("model.hidden", "5", (5,)),
        ("model.hidden", "[5,7]", (5, 7)),
        ("model.hidden", "()", ()),
        ("measures.own", "own:a,own:b", ("own:a", "own:b")),
    ],
)
def test_tuples_need_no_quotes(monkeypatch, form, field, text, value):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    monkeypatch.setattr(sys, "path", [*sys.path])
    argv = ["main", f"--config={ROOT}/configs/default.py"]
    argv += form.format(field, text).split(" ")
    monkeypatch.setattr(sys, "argv", argv)
    assert cli.parse(argv) == ["main"]
    *groups, name = field.split(".")
    found = values.config[groups[0]][name] if groups else values.config[name]
    assert found == value


def test_module_beside_the_config_comes_before_the_current_folder(
    refusal, tmp_path, monkeypatch
):
    folder = tmp_path / "here"
    folder.mkdir()
    for place, name in ((folder, "here"), (tmp_path, "beside")):
        (place / "both_have_it.py").write_text(f"WORD = {name!r}")
    (folder / "one_has_it.py").write_text("WORD = 'here'")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    told = refusal(
        "import both_have_it as both, one_has_it as one\n"
        "def get_config(): raise ValueError(both.WORD, one.WORD)\n"
    )
    assert "('beside', 'here')" in told


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


def test_errors_of_input_end_with_their_sentence(capsys):
    with pytest.raises(SystemExit) as ended, cli.refusing():
        raise ValueError("rank is 0")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "rank is 0\n"
    with pytest.raises(RuntimeError), cli.reporting("runs/x"):
        raise RuntimeError("a bug keeps its traceback")


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
