"""The kernels in Triton's interpreter, and on a GPU where there is one, against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels import cases
from tests.kernels.cases import Case, Found
from varsearch.kernels.quantized_linear import FUSED_ROWS

BITS = (8, 6, 4, 3)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [
    *((None, *shape) for shape in ((1, 1, 1), (2, 7, 3), (17, 31, 13), (33, 131, 67), (65, 128, 129), (8, 384, 128))),
    *((32, *shape) for shape in ((3, 32, 5), (19, 160, 37))),
    *((64, *shape) for shape in ((1, 64, 1), (34, 192, 70))),
    *((128, *shape) for shape in ((7, 128, 16), (20, 384, 67))),
]
"""Groups, then rows, inputs and outputs: ones, primes, one more than a tile, a real layer."""

CASES = [
    Case(bits, group, dtype, *shape, seed=seed)
    for seed, (bits, dtype, (group, *shape)) in enumerate(itertools.product(BITS, DTYPES, SHAPES))
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_bits = pytest.mark.parametrize("bits", BITS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

Run = Callable[..., Any]


@each_case
def test_products_are_exact_where_arithmetic_is(case: Case, interpreter: Run) -> None:
    assert interpreter(cases.product, case) == Found(0, 0)


@each_case
def test_expanded_weights_are_exact(case: Case, interpreter: Run) -> None:
    assert interpreter(cases.expansion, case) == Found(0, 0)


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    bits, dtype, group = (draw(st.sampled_from(choices)) for choices in (BITS, DTYPES, (None, 32, 64, 128)))
    inputs = draw(st.integers(1, 300)) if group is None else group * draw(st.integers(1, 3))
    rows, outputs, seed = draw(st.integers(1, 140)), draw(st.integers(1, 140)), draw(st.integers(0, 9))
    return Case(bits, group, dtype, rows, inputs, outputs, seed)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=any_case())
def test_any_shape_is_exact(case: Case, interpreter: Run) -> None:
    assert interpreter(cases.product, case) == interpreter(cases.expansion, case) == Found(0, 0)


@each_bits
@each_dtype
@pytest.mark.parametrize("shape", [(None, 5, 384, 128), (64, 30, 192, 67)], ids=str)
def test_rounding_errors_stay_within_their_bound(
    bits: int, dtype: torch.dtype, shape: tuple[int | None, int, int, int], interpreter: Run
) -> None:
    for seed in (0, 1):
        assert max(interpreter(cases.rounding, Case(bits, shape[0], dtype, *shape[1:], seed=seed))) <= 1


@pytest.mark.parametrize("activation_bits", [None, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_many_rows_multiply_with_the_weight_of_the_definition(
    dtype: torch.dtype, activation_bits: int | None, interpreter: Run
) -> None:
    case = Case(4, 32, dtype, FUSED_ROWS, 64, 21)
    assert interpreter(cases.same_as_definition, case, "cpu", activation_bits)


def test_operators_pass_the_checks_of_pytorch(interpreter: Run) -> None:
    interpreter(cases.check_operators)


def test_the_compiler_sees_one_operator(interpreter: Run) -> None:
    seen, same = interpreter(cases.compiled_graph)
    assert [name for name in seen if "varsearch" in name] == ["varsearch.quantized_linear.default"]
    assert not any("shift" in name or "mul" in name for name in seen)
    assert same


def test_activations_may_have_any_strides(interpreter: Run) -> None:
    assert interpreter(cases.odd_strides) == [True] * 3


def test_an_empty_batch_has_an_empty_result(interpreter: Run) -> None:
    assert interpreter(cases.empty_batch) == (2, 0, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGPU:
    @each_bits
    def test_kernels_are_exact_where_arithmetic_is(self, bits: int) -> None:
        for case in (case for case in CASES if case.bits == bits):
            assert (cases.product(case, "cuda"), cases.expansion(case, "cuda")) == (Found(0, 0),) * 2, str(case)

    @each_bits
    @each_dtype
    def test_rounding_errors_stay_within_their_bound(self, bits: int, dtype: torch.dtype) -> None:
        for group, rows in itertools.product((None, 128), (1, 30, 128, 1024)):
            assert max(cases.rounding(Case(bits, group, dtype, rows, 1024, 3072), "cuda")) <= 1

    @pytest.mark.parametrize("rows", [1, 20, 128, 4096])
    def test_results_repeat(self, rows: int) -> None:
        assert cases.repeats(Case(4, 128, torch.float16, rows, 1024, 3072), "cuda")
