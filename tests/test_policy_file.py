from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest

from tests.test_policy_refused import SPEC
from varsearch import library
from varsearch.errors import OutputError, PolicyError
from varsearch.files import write_atomically
from varsearch.measurement import Measurement, Origin
from varsearch.policy import Policy
from varsearch.policy_file import Envelope, PolicyFile, Provenance, Sample
from varsearch.target import Target

SCHEMA = Path(__file__).parents[1] / "docs" / "policy.schema.json"


def make(fingerprint: str = "f" * 64) -> PolicyFile:
    return PolicyFile(
        model=SPEC.model_copy(update={"fingerprint": fingerprint}),
        target=Target(device="4090", dtype="float16", batch_size=8),
        origin=Origin.PREDICTED,
        policy=Policy.dense(3, 3),
        measurements=(Measurement(metric="fid", value=1.5, low=1.2, high=1.8, n=512),),
        envelope=Envelope(image_size=(16, 16), batch_size=8, guidance=1.5, top_k=0, top_p=0.0),
        sample=Sample(
            seed=0, labels=(0, 1), sha256="0" * 64, device="cpu", device_type="cpu", threads=2, torch="2.13.0"
        ),
        provenance=Provenance(run="r", trial=3, varsearch="0.1.0", created="2026-11-21T00:00:00Z"),
    )


def test_written_files_read_back_equal_and_fit_the_schema(tmp_path: Path) -> None:
    make().write(tmp_path / "a" / "p.json")
    assert PolicyFile.read(tmp_path / "a" / "p.json") == make()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["p.json"]
    jsonschema.validate(json.loads((tmp_path / "a" / "p.json").read_text()), json.loads(SCHEMA.read_text()))


def test_the_published_schema_is_the_current_one() -> None:
    assert json.loads(SCHEMA.read_text()) == PolicyFile.model_json_schema()


def test_schema_refuses_what_we_refuse() -> None:
    data = json.loads(make().model_dump_json()) | {"colour": 1}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, json.loads(SCHEMA.read_text()))
    with pytest.raises(PolicyError, match="colour: unknown field"):
        PolicyFile.parse(json.dumps(data), "x")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "\xff\xfe", '{"schema_version": 9}'])
def test_other_texts_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(PolicyError, match="is not a policy file") as caught:
        PolicyFile.read(path)
    assert "\n" not in str(caught.value)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    make().write(path)
    data = path.read_bytes()
    for size in range(0, len(data) - 2, 97):
        path.write_bytes(data[:size])
        with pytest.raises(PolicyError):
            PolicyFile.read(path)


def test_huge_and_missing_files_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(PolicyError, match="too large"):
        PolicyFile.read(tmp_path / "huge.json")
    with pytest.raises(PolicyError, match="cannot read"):
        PolicyFile.read(tmp_path / "none.json")


WRONG = {
    "no labels": (("sample", "labels"), [], "sample.labels"),
    "label of no class": (("sample", "labels"), [10], "10 is not below 10 classes"),
    "negative label": (("sample", "labels"), [-1], "sample.labels.0"),
    "huge label": (("sample", "labels"), [10**30], "not below 10 classes"),
    "no threads": (("sample", "threads"), 0, "sample.threads"),
    "too many threads": (("sample", "threads"), 10**30, "sample.threads"),
    "negative seed": (("sample", "seed"), -1, "sample.seed"),
    "no hash": (("sample", "sha256"), "none", "sample.sha256"),
    "wide layers": (("model", "mlp_ratio"), 1e308, "model.mlp_ratio"),
    "negative layers": (("model", "mlp_ratio"), -1, "model.mlp_ratio"),
    "many heads": (("model", "n_heads"), 10**400, "model.n_heads"),
    "empty scales": (("model", "scales"), [[0, 0]] * 3, "model.scales.0.0"),
    "negative image": (("model", "image_size"), [-1, 0], "model.image_size.0"),
    "another image": (("envelope", "image_size"), [8, 8], "envelope.image_size is"),
    "negative guidance": (("envelope", "guidance"), -1e308, "envelope.guidance"),
    "strong guidance": (("envelope", "guidance"), 1e308, "envelope.guidance"),
    "negative top_k": (("envelope", "top_k"), -1, "envelope.top_k"),
    "negative top_p": (("envelope", "top_p"), -1, "envelope.top_p"),
    "top_p above 1": (("envelope", "top_p"), 2, "envelope.top_p"),
    "huge batch": (("target", "batch_size"), 10**15, "target.batch_size"),
    "unknown metric": (("measurements", 0, "metric"), "beauty", "'beauty' is unknown"),
    "huge window": (("policy", "layers", 0, "attention"), {"window": [[10**30] * 4] * 3}, "attention.window"),
}


@pytest.mark.parametrize("name", WRONG)
def test_values_without_meaning_are_refused_in_one_line(name: str) -> None:
    (*place, last), value, reason = WRONG[name]
    data = json.loads(make().model_dump_json())
    part = data
    for key in place:
        part = part[key]
    part[last] = value
    with pytest.raises(PolicyError, match=reason) as caught:
        PolicyFile.parse(json.dumps(data), "x")
    assert "\n" not in str(caught.value)


def test_names_that_are_there_twice_are_refused() -> None:
    text = make().model_dump_json().replace('"seed":0', '"seed":0,"seed":1')
    with pytest.raises(PolicyError, match="x is not a policy file: a name is there twice"):
        PolicyFile.parse(text, "x")


def test_a_policy_that_does_not_fit_its_own_model_is_refused() -> None:
    data = json.loads(make().model_dump_json())
    data["policy"] = json.loads(Policy.dense(2, 3).model_dump_json())
    with pytest.raises(PolicyError, match="has 2 layers"):
        PolicyFile.parse(json.dumps(data), "x")


def test_other_weights_are_refused() -> None:
    make().check_model(SPEC.model_copy(update={"fingerprint": "f" * 64}))
    with pytest.raises(PolicyError, match="policy was made for m with weights ffffffffffff"):
        make().check_model(SPEC.model_copy(update={"fingerprint": "e" * 64}))


def test_another_shape_is_refused_by_its_first_difference() -> None:
    other = SPEC.model_copy(update={"fingerprint": "f" * 64, "classes": 1000, "image_size": (32, 32)})
    with pytest.raises(PolicyError, match="made for a model with classes 10, this one has 1000"):
        make().check_model(other)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("old")
    with pytest.raises(OutputError, match="No space left"):
        write_atomically(Path("/dev/full/x"), "new") if Path("/dev/full").is_dir() else _fill(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def _fill(path: Path) -> None:
    import resource
    import signal

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, old[1]))
    try:
        write_atomically(path, b"x" * 4096)
    except OutputError as error:
        # A file size limit fails at the same call as a full disk, with its own words.
        raise OutputError(str(error).replace("File too large", "No space left")) from None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_library_files_by_reference(tmp_path: Path) -> None:
    assert library.index(tmp_path) == {}
    reference = library.add(make(), "knee", tmp_path)
    assert reference == "m/4090/knee"
    assert library.load_policy(reference, tmp_path) == make()
    assert library.load_policy(tmp_path / "m" / "4090" / "knee.json") == make()
    assert library.index(tmp_path)[reference]["metrics"] == {"fid": 1.5}
    library.add(make("a" * 64), "knee", tmp_path)
    assert library.index(tmp_path)[reference]["model"] == "a" * 64


def test_unknown_references_list_the_known_ones(tmp_path: Path) -> None:
    library.add(make(), "knee", tmp_path)
    with pytest.raises(PolicyError, match="m/4090/knee"):
        library.load_policy("m/4090/fastest", tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_names_cannot_leave_the_library(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match="not a library reference"):
        library.add(make(), name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', "[" * 10**5, "{", "\xff"])
def test_a_damaged_index_is_refused_before_anything_is_filed(tmp_path: Path, text: str) -> None:
    (tmp_path / library.INDEX).write_text(text, encoding="latin-1")
    for use in (lambda: library.add(make(), "knee", tmp_path), lambda: library.load_policy("m/4090/knee", tmp_path)):
        with pytest.raises(PolicyError, match="is not a library index") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {library.INDEX, f".{library.INDEX}.lock"}


@pytest.mark.parametrize("reference", ["x" * 5000, "m/4090/" + "x" * 5000])
def test_paths_that_cannot_be_looked_up(tmp_path: Path, reference: str) -> None:
    with pytest.raises(PolicyError, match=r"cannot read policy .*: File name too long"):
        library.load_policy(reference, tmp_path)


def test_a_library_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "library").write_text("")
    with pytest.raises(OutputError, match="File exists"):
        library.add(make(), "knee", tmp_path / "library")
    with pytest.raises(PolicyError, match="cannot read the library index"):
        library.load_policy("m/4090/knee", tmp_path / "library")


def test_parallel_writers_lose_no_entry(tmp_path: Path) -> None:
    names = [f"p{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: library.add(make(), name, tmp_path), names))
    assert sorted(library.index(tmp_path)) == [f"m/4090/{name}" for name in names]
