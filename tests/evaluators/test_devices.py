"""The device at hand, by its name or by its properties, and what cannot run there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from varsearch.errors import TargetError
from varsearch.evaluators.devices import by_properties, local_device, named, no_compiler, obstacles
from varsearch.evaluators.speed import protocol_for
from varsearch.measurement import Origin
from varsearch.target import Target, default_target, devices, find_device, label_of


@dataclass
class Properties:
    """Those of torch that tell figures; these are of an RTX 4090."""

    major: int = 8
    minor: int = 9
    multi_processor_count: int = 128
    total_memory: int = 25_250_627_584
    clock_rate: int = 2_520_000
    memory_clock_rate: int = 10_501_000
    memory_bus_width: int = 384


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, found: Properties) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: name)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (found.major, found.minor))
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda *_: found)


def test_properties_give_the_figures_of_the_table() -> None:
    row, known = by_properties("some name", Properties()), find_device("4090")
    assert row is not None
    assert row.tflops == pytest.approx(known.tflops, rel=0.01)
    assert row.gb_per_s == pytest.approx(known.gb_per_s, rel=0.01)
    assert by_properties("an old one", Properties(major=5)) is None


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA GeForce RTX 4090 D", "4090d"), ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA H100 NVL", "h100-nvl"), ("NVIDIA GeForce RTX 5090", "5090"), ("NVIDIA B200", "b200"),
    ],
)  # fmt: skip
def test_variants_have_rows_of_their_own(monkeypatch: pytest.MonkeyPatch, name: str, row: str) -> None:
    stand_in(monkeypatch, name, Properties())
    assert named("local") == find_device(row)


def test_any_gpu_is_measured_on_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "NVIDIA GeForce RTX 3080", Properties(minor=6))
    found = named("local")
    assert found.name == "gpu:NVIDIA GeForce RTX 3080" == local_device().name  # type: ignore[union-attr]
    protocol = protocol_for(default_target(found))
    assert protocol.origin is Origin.MEASURED and protocol.machine.startswith("NVIDIA GeForce RTX 3080, ")
    assert label_of(found.name) == "NVIDIA GeForce RTX 3080"


def test_a_gpu_that_is_elsewhere_keeps_its_label() -> None:
    assert label_of("gpu:NVIDIA TITAN V") == "NVIDIA TITAN V"
    with pytest.raises(TargetError, match="NVIDIA TITAN V is not in the table"):
        protocol_for(Target(device="gpu:NVIDIA TITAN V", dtype="float16", batch_size=1))


def test_local_without_a_gpu_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert named("local") == named("LOCAL") == find_device("cpu")


def test_obstacles_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    here = obstacles(find_device("cpu"))
    assert "CUDA devices" in here["attention cudnn"] and "triton" in here
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert "torch sees no GPU" in obstacles(find_device("h100"))["here"]
    monkeypatch.setattr("torch.version.cuda", None)
    assert "without CUDA" in obstacles(find_device("h100"))["here"]
    monkeypatch.setattr("torch.version.cuda", "13.0")
    stand_in(monkeypatch, "NVIDIA H100 PCIe", Properties(major=9, minor=0))
    assert "the GPU here is 'NVIDIA H100 PCIe'" in obstacles(find_device("h100"))["here"]
    assert "here" not in obstacles(find_device("h100-pcie"))


def test_triton_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    assert no_compiler(lambda name: None) is not None
    assert no_compiler({"clang": "/usr/bin/clang"}.get) is None


def test_labels_are_unique() -> None:
    labels = [row.label for row in devices().values()]
    assert len(set(labels)) == len(labels)
