"""Operators on tensors without content against the same on real ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.contentless import Contentless, Layout, WithoutContent

SHAPE = (2, 8, 6, 8)

WORK: dict[str, Callable[[Tensor], Tensor]] = {
    "as laid out": lambda t: t * 2,
    "otherwise laid out": lambda t: t.transpose(1, 3) * 2,
    "one as an integer": lambda t: t.argmax(-1) + 1,
    "one as a number": lambda t: t.argmax(-1) + 1.0,
    "one as a truth": lambda t: t.argmax(-1) + True,
    "the first part": lambda t: t.split(3, dim=2)[0],
    "the last part": lambda t: t.split(3, dim=2)[1],
    "a part of the last part": lambda t: t[:, 1:][:, 1:3],
    "a part of a part": lambda t: t[:, :-1][:, 1:3],
    "chosen by numpy": lambda t: t[:, torch.from_numpy(np.array([0, 2]))],
    "written to": lambda t: t.clone().index_fill_(1, torch.tensor([1]), 0.5).mul_(3),
    "a number written to": lambda t: _cleared(t.clone()),
    "attention": lambda t: F.scaled_dot_product_attention(t, t, t),
    "half": lambda t: F.layer_norm(t.half(), (8,)),
}


def _cleared(t: Tensor) -> Tensor:
    t[..., -1:] = False
    return t


@pytest.mark.parametrize("inference", [False, True])
def test_layouts_are_those_of_real_tensors(inference: bool) -> None:
    real = torch.randn(SHAPE)
    with torch.inference_mode(inference):
        expected = {name: Layout.of(work(real)) for name, work in WORK.items()}
    # The second time all answers are known.
    for _ in range(2):
        with WithoutContent():
            hollow = Contentless.like(real, real.dtype)
            with torch.inference_mode(inference):
                made = {name: work(hollow) for name, work in WORK.items()}
        assert {name: Layout.of(t) for name, t in made.items()} == expected
        shared = {name for name, t in made.items() if t.untyped_storage() is hollow.untyped_storage()}
        assert shared == {name for name in WORK if "part" in name}


def test_models_of_parameters_keep_their_storages() -> None:
    with WithoutContent():
        weight = Contentless.like(torch.empty(4, 6).mT, torch.float16)
        parameter = torch.nn.Parameter(weight, requires_grad=False)
    assert parameter.untyped_storage() is weight.untyped_storage()
    assert (parameter.shape, parameter.stride(), parameter.dtype) == ((6, 4), (1, 6), torch.float16)
    assert weight.untyped_storage().nbytes() == 4 * 6 * 2


def test_what_cannot_be_told_is_refused() -> None:
    with WithoutContent():
        t = Contentless.like(torch.empty(2, 1), torch.float32)
        with pytest.raises(NotImplementedError, match="squeeze_"):
            t.squeeze_()
    with pytest.raises(RuntimeError, match="outside of WithoutContent"):
        t + 1
