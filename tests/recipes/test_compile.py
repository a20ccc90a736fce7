"""What a GPU compiles is one graph, and the same one in every layer: shown without a compiler."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from recipes.cifar10.__main__ import main
from tests.conftest import build_tiny


# Dynamo looks at every tensor's gradient, which torch warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_blocks_of_a_transformer_are_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamo = pytest.importorskip("torch._dynamo")
    dynamo.reset()
    monkeypatch.setattr(dynamo.config, "error_on_recompile", True)
    model = build_tiny(shared_adaln=True).transformer
    compiled = copy.deepcopy(model).requires_grad_(True)
    for block in compiled.layers:
        block.compile(backend="eager", fullgraph=True)
    labels, tokens = torch.tensor([3, 10]), sum(h * w for h, w in model.config.scales)
    for seed in range(2):
        inputs = torch.randn(2, tokens - 1, 8, generator=torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = compiled(labels, inputs), model(labels, inputs)
        assert torch.equal(found, expected) and found.std() > 0.1
    found.float().square().mean().backward()
    assert compiled.layers[0].attn.mat_qkv.weight.grad is not None
    assert copy.deepcopy(compiled)(labels, inputs).shape == found.shape, "its average runs uncompiled"
    dynamo.reset()


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_with_compiled_blocks(archive: Path, tmp_path: Path) -> None:
    assert main([str(archive), str(tmp_path / "cifar10"), "--smoke", "--work", str(tmp_path / "work")]) == 0
    assert (tmp_path / "cifar10" / "card.json").is_file()
