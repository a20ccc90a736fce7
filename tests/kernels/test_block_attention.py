"""Attention by blocks and lengths: the kernel in the interpreter, and on a GPU, against the definition by masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels import block_cases
from tests.kernels.block_cases import Case, made
from varsearch.errors import TargetError
from varsearch.kernels.attention_backends import reference as masked
from varsearch.kernels.attention_entropy import attention_entropy
from varsearch.kernels.block_attention import (
    AttentionInputs,
    KVEntries,
    attend,
    flattened,
    restored,
    unsupported,
)

Run = Callable[..., Any]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

CASES = {
    "dense": Case(),
    "packed": Case(packed=True, keys=33),
    "ragged": Case(packed=True, lengths=True, heads=3),
    "list of entries": Case(index=True, lengths=True, seed=1),
    "8 bits": Case(bits=8, own=20),
    "4 bits": Case(bits=4, own=1, packed=True, channels=32),
    "order": Case(order=True, seed=2),
    "groups": Case(groups=3, index=True, lengths=True, seed=3),
    "blocks": Case(blocks=True, keys=200, seed=4),
    "window": Case(window=True, seed=5),
    "band": Case(band=True, seed=6),
    "blocks of windows": Case(blocks=True, window=True, order=True, keys=150, seed=7),
    "all": Case(
        packed=True, lengths=True, index=True, groups=2, blocks=True, window=True, band=True, own=5, seed=8
    ),
    "one of each": Case(rows=1, heads=1, queries=1, keys=1),
    "no keys": Case(packed=True, lengths=True, keys=1, seed=11),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_equals_the_definition(name: str, dtype: torch.dtype, interpreter: Run) -> None:
    assert max(interpreter(block_cases.errors, CASES[name]._replace(dtype=dtype))) <= 1


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    flag = st.booleans()
    return Case(
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        rows=draw(st.integers(1, 2)), heads=draw(st.integers(1, 3)),
        queries=draw(st.integers(1, 70)), keys=draw(st.integers(1, 100)),
        channels=draw(st.sampled_from([16, 24, 32, 64, 80, 128])),
        packed=draw(flag), lengths=draw(flag), index=draw(flag), bits=draw(st.sampled_from([None, 8, 4])),
        own=draw(st.sampled_from([0, 0, 1, 40])), order=draw(flag), groups=draw(st.integers(1, 3)),
        blocks=draw(flag), window=draw(flag), band=draw(flag), block_size=draw(st.sampled_from([16, 32, 64])),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=any_case())
def test_any_request_equals_the_definition(case: Case, interpreter: Run) -> None:
    assert max(interpreter(block_cases.errors, case._replace(groups=min(case.groups, case.queries)))) <= 1


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=any_case())
def test_keys_receive_what_queries_give(case: Case, interpreter: Run) -> None:
    case = case._replace(groups=min(case.groups, case.queries), bits=None)
    # Half precision counts in the products' operands alone, which both have: the result is a float32 sum.
    assert interpreter(block_cases.mass_error, case) < 1e-5


def test_the_definition_is_softmax_attention_where_all_is_seen() -> None:
    inputs = made(Case(dtype=torch.float64))
    found = attend(inputs, "reference")
    q, k, v = inputs.q_BHLC, inputs.keys.k, inputs.keys.v
    torch.testing.assert_close(found.out_BHLC, masked(q, k, v))
    torch.testing.assert_close(found.entropy_BHL, attention_entropy(q, k))
    torch.testing.assert_close(found.lse_BHL, (q @ k.mT).logsumexp(-1))


def test_operators_pass_the_checks_of_pytorch(interpreter: Run) -> None:
    interpreter(block_cases.check_operators)


@pytest.mark.parametrize("name", CASES)
def test_a_request_survives_its_operator(name: str) -> None:
    inputs = made(CASES[name])
    assert restored(inputs.q_BHLC, *flattened(inputs)) == inputs


def test_costs_are_those_of_the_blocks_computed() -> None:
    q, k = torch.empty(2, 3, 10, 16, device="meta"), torch.empty(2, 3, 20, 16, device="meta")
    for pairs, want in ((None, 3 * 10 * 20), (77, 77)):
        with FlopCounterMode(display=False) as counter:
            attend(AttentionInputs(q, KVEntries(k, k), pairs=pairs), "triton")
        assert counter.get_total_flops() == 4 * 2 * want * 16


def test_what_follows_finds_the_heads_of_a_token_side_by_side() -> None:
    q = torch.empty(2, 3, 10, 16, device="meta")
    out = attend(AttentionInputs(q, KVEntries(q, q)), "triton").out_BHLC
    assert out.transpose(1, 2).is_contiguous() and out.shape == q.shape


def test_reasons(monkeypatch: pytest.MonkeyPatch, interpreter: Run) -> None:
    assert interpreter(unsupported, CPU, torch.bfloat16, 64) is None
    assert unsupported(CPU, torch.float32, 64) == "it compiles for CUDA devices, not for cpu"
    assert unsupported(CPU, torch.float64, 64) == "it computes in float16, bfloat16 or float32, not in float64"
    assert unsupported(CPU, torch.float16, 256) == "it takes heads of 16 to 128 channels, not of 256"
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    assert unsupported(CUDA, torch.float16, 64) == "it needs compute capability 8.0, this GPU has 7.5"
    with pytest.raises(TargetError, match="attention 'triton' cannot run here: it compiles for CUDA devices"):
        attend(made(Case()), "triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_the_compiled_kernel_equals_the_definition(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for channels in (16, 64, 128):
            case = CASES[name]._replace(dtype=dtype, channels=channels, queries=700, keys=1000, block_size=64)
            assert max(block_cases.errors(case, "cuda")) <= 1
