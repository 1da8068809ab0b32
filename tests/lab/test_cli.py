"""What the command line programs refuse and say, each in one sentence."""

import re
import subprocess
import sys

import pytest
from absl import flags
from conftest import ROOT
from ml_collections import config_flags

from bulk_sgd.lab.commands import cli

DEFAULT = "from bulk_sgd.lab.config import default as get_config\n"
DEFAULTS = [f"--config={ROOT}/configs/default.py"]
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
def parsed(monkeypatch):
    """The flags that words of a command line set."""

    def parse(*words):
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        flags.DEFINE_integer("steps", 1, "", flag_values=values)
        monkeypatch.setattr(cli.flags, "FLAGS", values)
        monkeypatch.setattr(sys, "path", [*sys.path])
        argv = ["main", *words]
        monkeypatch.setattr(sys, "argv", argv)
        assert cli.parse(argv) == ["main"]
        return values

    return parse


@pytest.fixture
def refusal(tmp_path, parsed, capsys):
    """What the program says to a config file of some content and to another flag."""

    def refuse(content, variant="", flag="--steps=1"):
        path = tmp_path / "config.py"
        path.write_text(content)
        with pytest.raises(SystemExit) as ended:
            parsed(f"--config={path}{variant}", flag)
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        return told

    return refuse


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
def test_the_last_value_of_a_field_wins(parsed, form):
    settings = [("model.hidden", "(5,)"), ("optimizer.momentum", "0.5"), ("seed", "1")]
    settings += [("seed", "2"), ("model.hidden", "(7,)"), ("optimizer.momentum", "-1")]
    words = " ".join(form.format(*setting) for setting in settings).split()
    words = [*DEFAULTS, "--noconfig.progress", *words, "--config.tensorboard"]
    found = parsed(*words).config
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
def test_tuples_need_no_quotes(parsed, form, field, text, value):
    found = parsed(*DEFAULTS, *form.format(field, text).split(" ")).config
    *groups, name = field.split(".")
    assert (found[groups[0]] if groups else found)[name] == value


def test_the_file_of_a_config_is_absolute(parsed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from bulk_sgd.lab.config import default\n"
        "def get_config(variant):\n"
        "    config = default()\n"
        "    config.name, config.data.name = variant, __file__\n"
        "    return config\n"
    )
    for words in (["--config=mine.py:quick"], ["-config", "mine.py:quick"]):
        values = parsed(*words)
        assert values.config.data.name == str(tmp_path / "mine.py")
        file = config_flags.get_config_filename(values["config"])
        assert (values.config.name, file) == ("quick", f"{tmp_path}/mine.py:quick")


@pytest.mark.parametrize("field", ["--config.seed=3", "-noconfig.progress"])
def test_a_field_before_the_config_is_refused(parsed, capsys, field):
    with pytest.raises(SystemExit) as ended:
        parsed(field, *DEFAULTS)
    name = field.partition("=")[0]
    told = f"{name} comes before --config; put --config=FILE before it.\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, told)


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


def test_errors_of_input_end_with_their_sentence(capsys):
    with pytest.raises(SystemExit) as ended, cli.refusing():
        raise ValueError("rank is 0")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "rank is 0\n"
    with pytest.raises(RuntimeError), cli.reporting("runs/x"):
        raise RuntimeError("a bug keeps its traceback")
