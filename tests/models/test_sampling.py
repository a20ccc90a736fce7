from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.exact import exact, same_images
from varsearch.accel import labels_for
from varsearch.models.batch import first_rows
from varsearch.models.image_model import ImageModel
from varsearch.models.sampling import GreedySampler, PairedSampler, PublishedSampler, filter_logits
from varsearch.models.seams import DenseKV


@pytest.mark.numerics
def test_an_image_does_not_depend_on_its_neighbours() -> None:
    tiny, labels = exact(), labels_for(6, 10)
    together = tiny.generate(labels, PairedSampler(3, range(6)))
    alone = tiny.generate(labels[4:5], PairedSampler(3, range(4, 5)))
    same_images(together[4:5], alone)
    assert (together[4] - together[5]).abs().max() > 0.01


def test_paired_noise_differs_by_seed_image_and_scale() -> None:
    flat, codebook = torch.zeros(2, 9, 32), torch.arange(32.0)[:, None]
    draws = {
        (seed, first, scale): PairedSampler(seed, range(first, first + 2))(flat, scale, codebook).flatten().tolist()
        for seed in (0, 1)
        for first in (0, 2)
        for scale in (0, 1, 2)
    }
    assert len({tuple(d) for d in draws.values()}) == len(draws)


def test_paired_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(400, 25, 3)
    drawn = PairedSampler(0, range(400))(logits, 0, torch.arange(3.0)[:, None])
    share = drawn.flatten().long().bincount() / drawn.numel()
    torch.testing.assert_close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.02, rtol=0)


@pytest.mark.numerics
def test_loop_and_teacher_forced_pass_agree(tiny: ImageModel) -> None:
    torch.manual_seed(0)
    tokens = [torch.randint(32, (3, n)) for n in tiny.spec.tokens]
    labels = labels_for(3, 10)
    with torch.no_grad():
        logits = tiny.transformer(labels, tiny.tokenizer.quantize.teacher_input(tokens))
    want = -logits.log_softmax(-1).gather(2, torch.cat(tokens, 1)[..., None])[..., 0].mean(1)
    torch.testing.assert_close(tiny.likelihood(labels, tokens).float(), want, atol=1e-5, rtol=1e-5)


def test_guidance_zero_is_the_conditional_model(tiny: ImageModel) -> None:
    labels = labels_for(3, 10)
    images = [tiny.generate(labels, GreedySampler(), guidance=g) for g in (0.0, 5.0)]
    recorded: list[Tensor] = []

    class Record(GreedySampler):
        def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
            recorded.append(logits_NLV)
            return super().__call__(logits_NLV, scale, codebook_VC)

    tiny.generate(labels, Record(), guidance=0.0)
    assert len(recorded) == 5 and recorded[0].shape == (3, 1, 32)
    assert not torch.equal(*images)


@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_top_k_keeps_exactly_k(top_k: int) -> None:
    logits = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    kept = filter_logits(logits, top_k, 0.0).isfinite()
    assert (kept.sum(-1) == min(top_k, 32)).all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_smallest_nucleus(top_p: float) -> None:
    logits = 3 * torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    kept = filter_logits(logits, 0, top_p).isfinite()
    p = logits.softmax(-1)
    mass = (p * kept).sum(-1)
    smallest = torch.where(kept, p, torch.inf).amin(-1)
    assert (mass >= top_p - 1e-6).all()
    assert (mass - smallest < top_p + 1e-6).all()


@pytest.mark.numerics
def test_published_sampler_with_top_1_is_greedy(tiny: ImageModel) -> None:
    labels = labels_for(2, 10)
    drawn = tiny.generate(labels, PublishedSampler(torch.Generator().manual_seed(0), top_k=1, top_p=0.0))
    assert torch.equal(drawn, tiny.generate(labels, GreedySampler()))


def test_the_cache_frees_unconditional_rows() -> None:
    cache = DenseKV()
    k, pos = torch.randn(4, 2, 8, 3), torch.arange(8)[None]
    cache.extend(k, k, k, pos, room=8)
    before = cache.nbytes
    cache = cache.take(first_rows(2))
    assert cache.nbytes == before // 2
    (view,) = cache.extend(k[:2, :, :1], k[:2, :, :1], k[:2, :, :1], pos[:, :1], room=0)
    assert torch.equal(view.k_BHSC[:, :, :8], k[:2]) and view.k_BHSC.shape[2] == 9


def test_the_last_scale_is_never_stored() -> None:
    cache = DenseKV()
    k, pos = torch.randn(1, 1, 3, 2), torch.arange(3)[None]
    cache.extend(k[:, :, :2], k[:, :, :2], k[:, :, :2], pos[:, :2], room=2)
    held = cache.nbytes
    (view,) = cache.extend(k, k, k, pos, room=0)
    assert view.k_BHSC.shape[2] == 5 and cache.nbytes == held
    assert view.positions().tolist() == [[[0, 1, 0, 1, 2]]]
