from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from varsearch.models import mamba
from varsearch.models.mamba import CHUNK, Mamba2, MambaConfig, chunked_scan

pytestmark = pytest.mark.numerics

LENGTH = CHUNK + 9


def inputs(length: int = LENGTH, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x, b, c = torch.randn(2, length, 3, 4), torch.randn(2, length, 5), torch.randn(2, length, 5)
    # From hardly any decay to decay that forgets everything within a token.
    dt, a = torch.rand(2, length, 3) * 4, -torch.tensor([0.01, 1.0, 60.0])
    return tuple(t.to(dtype) for t in (x, dt, a, b, c, torch.randn(2, 3, 4, 5)))


def token_by_token(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    out = []
    for t in range(x.shape[1]):
        step = dt[:, t, :, None, None]
        state = (step * a[:, None, None]).exp() * state + step * x[:, t, :, :, None] * b[:, t, None, None]
        out.append((state * c[:, t, None, None]).sum(-1))
    return torch.stack(out, dim=1), state


@pytest.mark.parametrize("chunk", [1, 7, CHUNK, LENGTH, 2 * LENGTH])
def test_the_chunked_scan_is_the_recurrence(chunk: int) -> None:
    found = chunked_scan(*inputs(), chunk=chunk)
    torch.testing.assert_close(found, token_by_token(*inputs()), atol=1e-11, rtol=1e-11)


def test_the_chunked_scan_in_fp32() -> None:
    found = chunked_scan(*inputs(dtype=torch.float32))
    want = tuple(t.float() for t in token_by_token(*inputs()))
    torch.testing.assert_close(found, want, atol=2e-4, rtol=1e-5)


def mixer(c: MambaConfig | None = None) -> Mamba2:
    torch.manual_seed(1)
    mixer = Mamba2(24, c or MambaConfig(state=6, head_dim=16)).double().eval()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return mixer.requires_grad_(False)


@pytest.mark.parametrize("conv", [1, 2, 4])
@pytest.mark.parametrize("pieces", [(1,) * 8, (1, 4, 3), (6, 2)])
def test_a_sequence_in_pieces_is_the_whole_sequence(pieces: tuple[int, ...], conv: int) -> None:
    module, u = mixer(MambaConfig(state=6, head_dim=16, conv=conv)), torch.randn(3, 8, 24, dtype=torch.float64)
    whole, end = module(u)
    past: tuple[Tensor, ...] = ()
    parts = []
    for piece in u.split(pieces, dim=1):
        part, past = module(piece, past)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(past, end, atol=1e-12, rtol=0)


def test_the_state_holds_no_more_than_it_must() -> None:
    _, past = mixer()(torch.randn(3, 50, 24, dtype=torch.float64))
    assert [t.untyped_storage().nbytes() for t in past] == [8 * 3 * 3 * (48 + 12), 8 * 3 * 3 * 16 * 6]


def test_fewer_rows_go_on_from_the_first_and_more_rows_from_a_shared_past() -> None:
    module, u = mixer(), torch.randn(4, 6, 24, dtype=torch.float64)
    _, past = module(u[:, :3])
    alone, _ = module(u[:2, 3:], module(u[:2, :3])[1])
    torch.testing.assert_close(module(u[:2, 3:], past)[0], alone, atol=1e-12, rtol=0)
    again, _ = module(u[:2, 3:].repeat(2, 1, 1), module(u[:2, :3])[1])
    torch.testing.assert_close(again, alone.repeat(2, 1, 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_recurrence_in_fp32(dtype: torch.dtype) -> None:
    module, u = mixer().to(dtype), torch.randn(2, 9, 24).to(dtype)
    out, (tail, state) = module(u)
    assert (out.dtype, tail.dtype, state.dtype) == (dtype, dtype, torch.float32)
    want, _ = module.float()(u.float())
    torch.testing.assert_close(out.float(), want, atol=0.05 * float(want.abs().max()), rtol=0)


def test_what_the_kernel_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side of the call only: the kernel itself needs a CUDA device."""

    def kernel(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int, *, initial_states: Tensor,
               return_final_states: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        assert return_final_states and b.shape == c.shape == (2, 9, 1, 6)
        return chunked_scan(x, dt, a, b[:, :, 0], c[:, :, 0], initial_states, chunk_size)

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", "mamba_ssm.ops.triton.ssd_combined"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[name], "mamba_chunk_scan_combined", kernel, raising=False)
    module, u = mixer(), torch.randn(2, 9, 24, dtype=torch.float64)
    want = module(u)
    assert mamba.scan_backend(u.device) == "torch"
    monkeypatch.setattr(mamba, "scan_backend", lambda device: "mamba-ssm")
    torch.testing.assert_close(module(u), want, atol=1e-12, rtol=0)
