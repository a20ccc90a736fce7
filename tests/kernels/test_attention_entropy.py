"""One pass over the keys gives the entropy that the whole matrix gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from varsearch.kernels.attention_entropy import attention_entropy

pytestmark = pytest.mark.numerics


def plain(q: Tensor, k: Tensor) -> Tensor:
    p = (q.double() @ k.double().mT).softmax(-1)
    return torch.special.entr(p).sum(-1)


def tensors(queries: int, keys: int, size: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(2, 3, queries, 8, generator=generator), torch.randn(2, 3, keys, 8, generator=generator))


@settings(max_examples=80)
@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 64), st.floats(0, 30), st.integers(0, 2**31))
def test_blocks_of_any_size_give_the_plain_formula(queries: int, keys: int, block: int, size: float, seed: int) -> None:
    q, k = tensors(queries, keys, size, seed)
    found = attention_entropy(q, k, block)
    torch.testing.assert_close(found.double(), plain(q, k), atol=2e-4, rtol=1e-4)
    assert found.dtype == torch.float32


def test_growing_products_need_the_term_that_the_published_algorithm_lacks() -> None:
    q, k = torch.ones(1, 1, 1, 1).double(), torch.arange(8.0).view(1, 1, 8, 1).double()
    torch.testing.assert_close(attention_entropy(q, k, block=1), plain(q, k))
    top = total = moment = 0.0
    for product in k.flatten().tolist():  # as published: the moment is only rescaled when the maximum grows
        scale = 2.718281828459045 ** (top - product)
        top, total, moment = product, total * scale + 1, moment * scale
    published = torch.tensor(total).log() - moment / total
    assert (published - plain(q, k)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    q, k = (t.to(dtype) for t in tensors(4, 3000, 0.5, 0))
    found = attention_entropy(q, k)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain(q, k), atol=1e-4, rtol=1e-4)


def test_even_attention_has_the_logarithm_of_the_number_of_keys_and_one_key_has_none() -> None:
    q, k = tensors(5, 50, 0, 0)
    torch.testing.assert_close(attention_entropy(q, k), torch.full((2, 3, 5), 50.0).log())
    assert attention_entropy(q + 1e3, k[:, :, :1]).abs().max() < 1e-5
