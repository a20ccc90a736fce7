"""Linear layers by either library: the same products, and PyTorch's own wherever somebody watches or learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import linear as benchmark
from varsearch import linear as module
from varsearch.linear import LARGE, Linear, linear
from varsearch.models.published import VAR_SIZES
from varsearch.models.var import VAR

pytestmark = pytest.mark.numerics

K, N = 512, LARGE // 512


def ran(x: torch.Tensor, layer: Linear) -> set[str]:
    """Names of the operators of one call."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        layer(x)
    return {event.key for event in found.key_averages()}


@pytest.fixture(scope="module")
def layer() -> Linear:
    torch.manual_seed(0)
    return Linear(K, N)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(K,), (2, K), (2, 5, K)])
def test_products_are_the_same_up_to_rounding(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, b = torch.randn(shape), torch.randn(N, K), torch.randn(N) if bias else None
    # Rows of another layout, as slices of a batch are.
    x = torch.stack((x, x), dim=-1)[..., 0]
    with torch.no_grad():
        got = linear(x, weight, b)
    torch.testing.assert_close(got, F.linear(x, weight, b), atol=1e-3, rtol=1e-5)


def test_large_products_are_onednns(layer: Linear) -> None:
    x = torch.randn(3, K)
    with torch.no_grad():
        assert "mkldnn::_linear_pointwise" in ran(x, layer)
        assert "mkldnn::_linear_pointwise" not in ran(x, Linear(K, N - 1))
    assert "mkldnn::_linear_pointwise" not in ran(x, layer), "gradients need PyTorch's"


def test_the_benchmark_compares_both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    monkeypatch.setattr(benchmark, "FLOPS", 0)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as found:
        assert benchmark.ratio(2, 64, 64) > 0
    counts = {event.key: event.count for event in found.key_averages()}
    assert (counts["mkldnn::_linear_pointwise"], counts["aten::linear"]) == (2, 2)


def test_without_onednn_products_are_pytorchs(layer: Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with torch.no_grad():
        x = torch.randn(3, K)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_who_counts_operations_sees_them(layer: Linear) -> None:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        layer(torch.randn(3, K))
    assert counter.get_total_flops() == 2 * 3 * K * N


def test_gradients_flow(layer: Linear) -> None:
    x = torch.randn(3, K, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, -1), atol=1e-3, rtol=1e-4)


def test_all_linears_of_published_blocks_are_large() -> None:
    with torch.device("meta"):
        block = VAR(VAR_SIZES["var-d16"]).layers[0]
    linears = [part for part in block.modules() if isinstance(part, torch.nn.Linear)]
    assert len(linears) == 5
    assert all(isinstance(part, Linear) and part.weight.numel() >= module.LARGE for part in linears)
