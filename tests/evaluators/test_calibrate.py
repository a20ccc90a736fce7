"""The calibration pass against the plain definitions of what it counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.exact import exact
from varsearch.calibration import MAX_WIDTHS, Calibration, widths
from varsearch.evaluators import attention_statistics as statistics
from varsearch.evaluators import calibrate as module
from varsearch.evaluators.calibrate import calibrate, protocol_of
from varsearch.models.image_model import ImageModel

TOKENS = (1, 4, 9)


@pytest.fixture
def attention() -> Tensor:
    """A map of two rows and two heads: 9 queries of the last scale, 14 keys."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 9, sum(TOKENS), generator=generator, dtype=torch.float64).softmax(-1)


def test_column_variance(attention: Tensor) -> None:
    for head in range(2):
        rows = [sum(attention[b, head, :, s].var(unbiased=False).item() for s in range(14)) for b in range(2)]
        assert statistics.column_variance(attention)[head].item() == pytest.approx(sum(rows) / 2)


def test_scale_mass(attention: Tensor) -> None:
    found = statistics.scale_mass(attention, TOKENS)
    assert found.sum(-1).tolist() == pytest.approx([1, 1])
    assert found[1, 1].item() == pytest.approx(attention[:, 1, :, 1:5].sum(-1).mean().item())


def test_band_mass(attention: Tensor) -> None:
    attention[0, 0, 0, 13] = statistics.NOISE / 2  # as good as nothing
    for j, start in enumerate((0, 1, 5)):
        found = statistics.band_mass(attention, TOKENS)[j]
        for place, width in enumerate(widths(TOKENS[j])):
            inside = [
                attention[b, 0, i, start + t].item()
                for b in range(2)
                for i in range(9)
                for t in range(TOKENS[j])
                if abs(i * TOKENS[j] / 9 - t) < width and attention[b, 0, i, start + t] >= statistics.NOISE
            ]
            assert found[0, place].item() == pytest.approx(sum(inside) / 2)


def test_history_top(attention: Tensor) -> None:
    best = attention[..., :5].max(-1).values  # a tenth of five keys is one
    assert statistics.history_top(attention, 9).item() == pytest.approx(best.mean().item())
    assert statistics.history_top(attention, 14).item() == 0


def test_entropy(attention: Tensor) -> None:
    uniform = torch.full((1, 2, 4, 8), 1 / 8)
    assert statistics.entropy(uniform).tolist()[0] == pytest.approx([math.log(8)] * 4)
    plain = -(attention * attention.log()).sum(-1).mean(1)
    torch.testing.assert_close(statistics.entropy(attention), plain)
    first, second = torch.linalg.svdvals(plain[0].view(3, 3))[:2]
    one = statistics.entropy_ratio(attention[:1], (3, 3)).item()
    assert one == pytest.approx((first / second).item())
    assert statistics.entropy_ratio(attention, (1, 9)).item() == 1


@pytest.mark.parametrize("tokens", [1, 7, MAX_WIDTHS, MAX_WIDTHS + 1, 256, 4096])
def test_widths_end_with_the_whole_map(tokens: int) -> None:
    found = widths(tokens)
    assert found[-1] == tokens and list(found) == sorted(set(found)) and len(found) <= MAX_WIDTHS


@pytest.fixture(scope="module")
def found(tiny: ImageModel) -> Calibration:
    return calibrate(tiny, protocol_of(tiny, images=6))


def test_shapes_and_sums(tiny: ImageModel, found: Calibration) -> None:
    spec, scales = tiny.spec, range(len(tiny.spec.scales))
    assert len(found.column_variance) == spec.n_layers and len(found.column_variance[0]) == spec.n_heads
    for k in scales:
        for layer in range(spec.n_layers):
            for head in range(spec.n_heads):
                assert len(found.scale_mass[k][layer][head]) == k + 1
                assert sum(found.scale_mass[k][layer][head]) == pytest.approx(1, abs=1e-5)
                for j, shares in enumerate(found.band_mass[k][layer][head]):
                    assert len(shares) == len(widths(spec.tokens[j]))
                    assert list(shares) == sorted(shares) and shares[-1] == pytest.approx(1)
    for layer in found.sqnr:
        assert set(layer) == {"qkv", "proj", "fc1", "fc2"}
        for by_bits in layer.values():
            assert by_bits[8] > by_bits[6] > by_bits[4] > by_bits[3]


def test_it_is_repeatable_and_leaves_the_model_alone(tiny: ImageModel, found: Calibration) -> None:
    again = calibrate(tiny, found.protocol)
    assert again.model_copy(update={"seconds": 0.0}) == found.model_copy(update={"seconds": 0.0})
    assert not any(module._forward_pre_hooks for module in tiny.transformer.modules())


@pytest.mark.numerics
def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fit_skipvar", lambda *_, **__: {})  # it has batches of its own
    whole = calibrate(exact(), protocol_of(exact(), images=6))
    monkeypatch.setattr(module, "BATCH", 4)  # 4 and 2 images
    parts = calibrate(exact(), whole.protocol)
    for name in ("column_variance", "entropy_ratio", "history_top"):
        for mine, theirs in zip(getattr(whole, name), getattr(parts, name), strict=True):
            # The same tokens were drawn: another one changes statistics by 1e-3, rounding by 1e-12.
            assert mine == pytest.approx(theirs, rel=1e-9)


def test_it_survives_json(found: Calibration) -> None:
    assert Calibration.model_validate_json(found.model_dump_json()) == found
