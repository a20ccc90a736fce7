"""Bad input ends with one clear line, a stable exit code, no traceback and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer

from tests.cli.commands import fails
from varsearch.cli.app import app
from varsearch.cli.main import main
from varsearch.models import zoo
from varsearch.policy import Policy

MNIST = zoo.folder("mnist")
FAST = ["--images", "16", "--target", "4090"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run where nothing is, and must leave it so when they fail."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VARSEARCH_LIBRARY", str(tmp_path / "library"))
    return folder


CASES = {
    "budget 0": (["run", "--budget", "0"], 2, ["budget must be at least 1"]),
    "batch of 0": (["run", "--batch-size", "0"], 2, ["'--batch-size'", "equal to 1 (see 'varsearch run --help')"]),
    "no policy named": (["explain"], 2, ["Missing argument", "(see 'varsearch explain --help')"]),
    "no such command": (["search"], 2, ["No such command 'search'", "(see 'varsearch --help')"]),
    "negative time": (["run", "--time", "-1"], 2, ["time must be a positive"]),
    "patience 0": (["run", "--patience", "0"], 2, ["patience must be at least 1 evaluation, got 0"]),
    "bound on nothing": (["run", *FAST, "--objectives", "latency,memory", "--max-fid", "+1"], 2, ["add fid"]),
    "unknown target": (["run", "--target", "6090"], 5, ["unknown target '6090'", "4090", "h200"]),
    "unknown model": (["run", "--model", "imagenet"], 4, ["unknown model 'imagenet'", "mnist"]),
    "pickle checkpoint": (["run", "--model", "var_d16.pth"], 4, ["a checkpoint without its tokenizer", "--weights"]),
    "unknown metric": (["run", *FAST, "--objectives", "beauty"], 2, ["unknown metric 'beauty'", "delta_fid"]),
    "four objectives": (["run", *FAST, "--objectives", "fid,kid,nll,flops"], 2, ["one to three"]),
    "impossible memory": (["run", *FAST, "--max-memory", "1kB"], 2, ["--max-memory", "least reachable"]),
    "impossible latency": (["run", *FAST, "--max-latency", "0.001x"], 2, ["--max-latency", "least reachable"]),
    "negative bound": (["run", *FAST, "--max-memory", "-3MB"], 2, ["--max-memory", "expected a number"]),
    "bound without meaning": (["run", *FAST, "--max-latency", "fast"], 2, ["--max-latency 'fast'"]),
    "fid of zero": (["run", *FAST, "--max-fid", "0"], 2, ["--max-fid"]),
    "two workers would disturb each other": (["run", "--target", "cpu", "--workers", "2"], 2, ["disturb each other"]),
    "too many cores": (["run", *FAST, "--workers", "2", "--cpus-per-worker", "999"], 2, ["more than the"]),
    "negative workers": (["run", *FAST, "--workers", "-1"], 2, ["workers must be 0"]),
    "no database yet": (["front"], 6, ["no database"]),
    "missing policy": (["apply", "nothing.json"], 3, ["no policy 'nothing.json'"]),
    "missing library entry": (["apply", "mnist/4090/knee"], 3, ["no policy 'mnist/4090/knee'"]),
    "missing reference": (["run", *FAST, "--reference", "none.safetensors"], 4, ["cannot read reference"]),
    "unreachable database": (
        ["run", *FAST, "--storage", "postgresql+psycopg://user:secret@127.0.0.1:9/x"],
        6,
        ["127.0.0.1:9"],
    ),
    "unknown kind of database": (["run", *FAST, "--storage", "oracle9://x"], 6, ["oracle9"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_arguments(name: str, capsys: pytest.CaptureFixture[str], in_empty_folder: Path) -> None:
    arguments, code, words = CASES[name]
    fails(capsys, arguments, code, *words)
    assert list(in_empty_folder.iterdir()) == []


def test_a_password_is_never_printed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", *FAST, "--storage", "postgresql+psycopg://user:secret@127.0.0.1:9/x"])
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("command", typer.main.get_command(app).commands)
def test_errors_of_usage_name_the_help_of_their_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, [command, "--colour"], 2, "No such option: --colour", f"(see 'varsearch {command} --help')")


@pytest.mark.parametrize("option", ["--colour", "--budget=many", "--images=3"])
def test_wrong_options_say_which(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", option]) == 2
    assert option.lstrip("-").partition("=")[0] in capsys.readouterr().err


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MNIST, tmp_path / "model"))


@pytest.mark.parametrize("part", ["transformer", "tokenizer", "classifier", "reference", "held_out"])
@pytest.mark.parametrize("damage", ["truncated", "tampered", "missing"])
def test_damaged_weights(part: str, damage: str, model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model_copy / f"{part}.safetensors"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:-9] + b"tampered!")
    expected = "cannot read" if damage == "missing" else "is not the file the manifest names"
    fails(capsys, ["run", *FAST, "--model", str(model_copy)], 4, f"{part}.safetensors", expected)


def test_a_pickle_under_a_safe_name(model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"head.bias": torch.zeros(1)}, model_copy / "transformer.safetensors")
    fails(capsys, ["run", *FAST, "--model", str(model_copy)], 4, "is not the file the manifest names")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy file of a tiny run."""
    folder = tmp_path_factory.mktemp("run")
    storage = ["--storage", str(folder / "x.db")]
    assert main(["run", *FAST, "--budget", "1", *storage]) == 0
    assert main(["export", "--select", "fastest", "--output", str(folder / "policy.json"), *storage]) == 0
    return folder / "policy.json"


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> str:
    data = json.loads(path.read_text())
    change(data)
    copy = Path("changed.json")
    copy.write_text(json.dumps(data))
    return str(copy)


def test_policy_files_that_do_not_belong(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = edit(exported, lambda d: d["model"].update(fingerprint="0" * 64))
    fails(capsys, ["apply", other], 3, "policy was made for mnist with weights 000000000000")
    unknown = edit(exported, lambda d: d["policy"].update(colour="red"))
    fails(capsys, ["apply", unknown], 3, "policy.colour: unknown field")
    newer = edit(exported, lambda d: d.update(schema_version=2))
    fails(capsys, ["apply", newer], 3, "schema_version")
    shape = edit(exported, lambda d: d.update(policy=json.loads(Policy.dense(2, 6).model_dump_json())))
    fails(capsys, ["apply", shape], 3, "policy has 2 layers, model mnist has 6")
    assert [p.name for p in Path().iterdir()] == ["changed.json"]


@pytest.mark.parametrize("labels", ["10", "-1", "one", "1,,2"])
def test_labels_that_are_no_classes(labels: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, ["apply", str(exported), f"--labels={labels}"], 2, "--labels")
    assert list(Path().iterdir()) == []


def test_output_that_cannot_be_written(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    fails(
        capsys, ["apply", str(exported), "--count", "1", "--output", "file/grid.png"], 8, "cannot write file/grid.png"
    )


@pytest.mark.parametrize("select", ["prettiest", "max-latency=fast", "max-latency=0.0001", "trial=99", "max-memory=1B"])
def test_selections_that_select_nothing(select: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(exported.parent / "x.db")]
    fails(capsys, ["export", "--select", select, *storage], 2)
    fails(capsys, ["export", "--run", "other", *storage], 2, "no run 'other'")
    assert list(Path().iterdir()) == []


def test_files_that_are_no_database(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.db").write_text("this is not a database, but long enough to have a header " * 9)
    fails(capsys, ["run", *FAST, "--storage", "text.db"], 6, "text.db")
    with sqlite3.connect("newer.db") as connection:
        connection.execute("create table varsearch_schema (version_num varchar(32) not null)")
        connection.execute("insert into varsearch_schema values ('9999')")
    fails(capsys, ["run", *FAST, "--storage", "newer.db"], 6, "newer")


# Root may write anything, unless it gives that capability up.
LIKE_A_USER = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []


def test_a_read_only_database(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    shutil.copytree(exported.parent, folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555)
    run = [sys.executable, "-m", "varsearch", "run", *FAST, "--budget", "2", "--storage", str(folder / "x.db")]
    done = subprocess.run([*LIKE_A_USER, *run], capture_output=True, text=True, check=False, env=clean_environment())
    folder.chmod(0o755)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def clean_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def test_a_full_disk_leaves_no_half_written_file(exported: Path) -> None:
    """A limit on file size fails at the same call as a full disk."""
    Path("grid.png").write_bytes(b"old")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))

    command = [sys.executable, "-m", "varsearch", "apply", str(exported), "--count", "40", "--output", "grid.png"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=limit, env=clean_environment()
    )
    assert done.returncode == 8 and "cannot write grid.png" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert Path("grid.png").read_bytes() == b"old" and [p.name for p in Path().iterdir()] == ["grid.png"]


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_the_same_command_continues() -> None:
    command = [sys.executable, "-m", "varsearch", "run", *FAST, "--budget", "4", "--storage", "run.db"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    assert process.stdout is not None
    while "trial 0" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "same command continues" in error
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    assert done.returncode == 0, done.stderr
    with sqlite3.connect("run.db") as connection:
        states = connection.execute("select number, state from trials order by number").fetchall()
    assert states == [(i, "COMPLETE") for i in range(4)]


def test_compare_refuses_a_policy_of_other_weights(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = edit(exported, lambda d: d["model"].update(fingerprint="0" * 64))
    fails(capsys, ["compare", other, *FAST], 3, "policy was made for mnist with weights 000000000000")
    assert [p.name for p in Path().iterdir()] == ["changed.json"]


def test_a_policy_from_a_larger_machine_without_measurements(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = edit(exported, lambda d: (d["sample"].update(threads=1000), d.update(measurements=[])))
    assert main(["apply", larger, "--count", "1", "--batch-size", "1"]) == 0
    assert "threads instead of 1000: samples may differ in the last bits" in capsys.readouterr().err


def test_export_of_a_run_with_other_weights(
    exported: Path, model_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (model_copy / "manifest.json").read_text()
    (model_copy / "manifest.json").write_text(text.replace('"norm_eps": 1e-06', '"norm_eps": 1e-05'))
    monkeypatch.setattr(zoo, "WEIGHTS", model_copy.rename(model_copy.with_name("mnist")).parent)
    zoo.manifest.cache_clear()
    fails(capsys, ["export", "--storage", str(exported.parent / "x.db")], 4, "was made with other weights")
    zoo.manifest.cache_clear()
    assert list(Path().iterdir()) == []


NUMBERS = {
    "threads": ["apply", "POLICY", "--threads", "10000000000"],
    "batch": ["apply", "POLICY", "--batch-size", "10000000000"],
    "trial": ["export", "--select", "trial=" + "9" * 5000, "--storage", "DATABASE"],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_beyond_any_machine(name: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"POLICY": str(exported), "DATABASE": str(exported.parent / "x.db")}
    fails(capsys, [known.get(part, part) for part in NUMBERS[name]], 2, name)
    assert list(Path().iterdir()) == []
