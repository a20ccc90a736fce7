"""Requests of all kinds, made from a few numbers; picklable, so that they also run in the interpreter's process."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from varsearch.kernels.block_attention import (
    SCALE_BITS,
    SIDE_BITS,
    AttentionInputs,
    BlockList,
    Geometry,
    KVEntries,
    QueryBlocks,
    attend,
    block_attention,
    column_mass,
    flattened,
    mass_of_columns,
)
from varsearch.kernels.block_reference import reference
from varsearch.kernels.packing import pack, quantize, unpack


class Case(NamedTuple):
    """Sizes, and which parts of a request there are."""

    dtype: torch.dtype = torch.float32
    rows: int = 2
    heads: int = 2
    queries: int = 70
    keys: int = 90
    channels: int = 16
    packed: bool = False
    lengths: bool = False
    index: bool = False
    bits: int | None = None
    own: int = 0
    order: bool = False
    groups: int = 1
    blocks: bool = False
    window: bool = False
    band: bool = False
    block_size: int = 32
    seed: int = 0


def made(case: Case, device: str = "cpu") -> AttentionInputs:
    """The request; its keys are as long as the longest of them, and behind them there is no number."""
    return _Maker(case, device).request()


class _Maker:
    def __init__(self, case: Case, device: str) -> None:
        self.case, self.device, self.rng = case, device, torch.Generator().manual_seed(case.seed)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.rng).to(self.device, torch.int32)

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng).to(self.device, self.case.dtype)

    def request(self) -> AttentionInputs:
        c = self.case
        # Token before head, as a projection leaves it.
        q = self.numbers(c.rows, c.queries, c.heads, c.channels).transpose(1, 2)
        own = None
        if c.own:
            own = KVEntries(*(self.numbers(c.rows, c.heads, c.own, c.channels) for _ in range(2)))
        return AttentionInputs(
            q, self.entries(), own, self.order(), self.list(), self.geometry(), self.pairs(), lse=True, entropy=True
        )

    def pairs(self) -> int:
        return self.case.heads * self.case.queries * (self.case.keys + self.case.own)

    def entries(self) -> KVEntries:
        c = self.case
        stored = c.keys + 5 if c.index else c.keys
        k, v = (self.numbers(c.rows, c.heads, stored, c.channels) for _ in range(2))
        length = self.integers(0, c.keys + 1, c.rows, c.heads, c.groups) if c.lengths else None
        index = None
        if c.index:
            order = torch.rand(c.rows, c.heads, c.groups, stored, generator=self.rng).argsort(-1)
            index = order[..., : c.keys].to(self.device, torch.int32)
        entries = KVEntries(k, v, length_BHG=length, index_BHGN=index)
        if c.bits:
            (qk, ks), (qv, vs) = quantize(k, c.bits), quantize(v, c.bits)
            low = {"k": pack(qk, c.bits), "v": pack(qv, c.bits), "k_scale": ks[..., 0], "v_scale": vs[..., 0]}
            entries = dataclasses.replace(entries, bits=c.bits, **low)
        return self.packed(entries, stored) if c.packed else entries

    def packed(self, entries: KVEntries, stored: int) -> KVEntries:
        """One row and head behind the other, with gaps of not-a-numbers."""
        c, gap = self.case, 3
        start = (
            (torch.arange(c.rows * c.heads) * (stored + gap) + gap).view(c.rows, c.heads).to(self.device, torch.int32)
        )
        names = ("k", "v", *(("k_scale", "v_scale") if c.bits else ()))
        fields: dict[str, Any] = {name: self.with_gaps(getattr(entries, name), gap) for name in names}
        if entries.length_BHG is None:
            fields["length_BHG"] = torch.full((1, 1, 1), c.keys, dtype=torch.int32, device=self.device)
        return dataclasses.replace(entries, start_BH=start.to(self.device), **fields)

    def with_gaps(self, t: Tensor, gap: int) -> Tensor:
        flat = t.flatten(0, 1)
        hole = torch.full(
            (len(flat), gap, *flat.shape[2:]), float("nan") if t.is_floating_point() else 255, dtype=t.dtype
        )
        return torch.cat((hole.to(t.device), flat), dim=1).flatten(0, 1)

    def places(self) -> int:
        """Places of the queries, in whole blocks of each group."""
        c = self.case
        size = c.block_size
        sizes = [c.queries * (g + 1) // c.groups - c.queries * g // c.groups for g in range(c.groups)]
        return sum(-(-n // size) * size for n in sizes) if c.order or c.groups > 1 else -(-c.queries // 64) * 64

    def order(self) -> QueryBlocks | None:
        c = self.case
        if not c.order and c.groups == 1:
            return None
        index, group = [], []
        order = torch.randperm(c.queries, generator=self.rng) if c.order else torch.arange(c.queries)
        for g in range(c.groups):
            part = order[c.queries * g // c.groups : c.queries * (g + 1) // c.groups]
            n_blocks = -(-len(part) // c.block_size)
            index.append(torch.cat((part, torch.full((n_blocks * c.block_size - len(part),), -1))))
            group += [g] * n_blocks
        return QueryBlocks(
            torch.cat(index).to(self.device, torch.int32),
            torch.tensor(group, dtype=torch.int32, device=self.device) if c.groups > 1 else None,
            c.block_size,
        )

    def list(self) -> BlockList | None:
        """Some blocks in any order, the first of them full; a block with the end of the keys is never full."""
        c = self.case
        if not c.blocks:
            return None
        size = c.block_size if c.order or c.groups > 1 else 64
        n_q, n_k = self.places() // size, -(-c.keys // c.block_size)
        shape = (1 if c.seed % 2 else c.rows, c.heads, n_q)
        whole = 0 if c.lengths else c.keys // c.block_size
        index, full, count = torch.zeros(*shape, n_k, dtype=torch.int32), torch.zeros(shape), torch.zeros(shape)
        for at in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
            chosen = torch.randperm(n_k, generator=self.rng)[: int(torch.randint(n_k + 1, (1,), generator=self.rng))]
            able = [b for b in chosen.tolist() if b < whole]
            first = able[: int(torch.randint(len(able) + 1, (1,), generator=self.rng))]
            rest = [b for b in chosen.tolist() if b not in first]
            index[(*at, slice(0, len(first) + len(rest)))] = torch.tensor(first + rest, dtype=torch.int32)
            full[tuple(at)], count[tuple(at)] = len(first), len(first) + len(rest)
        full, count = (t.to(self.device, torch.int32) for t in (full, count))
        return BlockList(index.to(self.device), full, count, c.block_size)

    def geometry(self) -> Geometry | None:
        """Cells of three maps anywhere, so that no order of theirs is taken for granted."""
        c = self.case
        if not (c.window or c.band):
            return None
        sizes = torch.tensor([[2, 3], [5, 4], [9, 12]], dtype=torch.int32)

        def cells(scales: Tensor) -> Tensor:
            y, x = (self.integers(0, 1000, *scales.shape).cpu() % sizes[scales, axis] for axis in (0, 1))
            return (scales << SCALE_BITS | y << SIDE_BITS | x).to(self.device, torch.int32)

        own = torch.full((c.rows if c.seed % 3 else 1, self.places()), 2)
        keys = torch.randint(3, (c.rows, 1 if c.seed % 2 else c.heads, c.keys), generator=self.rng)
        radius = self.integers(0, 4, c.heads, 3) if c.window else None
        width = self.integers(0, 20, c.heads, 3) if c.band else None
        return Geometry(cells(own), cells(keys), sizes.to(self.device), radius, width, 9, 12)


class Errors(NamedTuple):
    """Largest errors, in units of their bounds."""

    out: float
    lse: float
    entropy: float


def errors(case: Case, device: str = "cpu") -> Errors:
    """The kernel against the definition in double precision on the same operands."""
    inputs = made(case, device)
    found, want = attend(inputs, "triton"), reference(_wider(inputs))
    assert want.lse_BHL is not None and want.entropy_BHL is not None
    assert found.lse_BHL is not None and found.entropy_BHL is not None
    sizes = _wider(inputs, absolute=True)
    # Products are sums of as many terms as there are channels, each rounded in float32; then come their weights.
    largest = _largest_product(inputs)
    product = (case.channels + 4) * 2.0**-24 * largest
    magnitude = reference(sizes).out_BHLC + want.out_BHLC.abs()
    bound = (2 * torch.finfo(case.dtype).eps + 2 * product) * magnitude + 1e-30
    out = (found.out_BHLC.double() - want.out_BHLC).abs() / bound
    assert torch.equal(found.lse_BHL.isneginf(), want.lse_BHL.isneginf())
    there = ~want.lse_BHL.isneginf()
    lse = (found.lse_BHL.double() - want.lse_BHL)[there].abs() / (
        2 * product + 2.0**-21 * (1 + want.lse_BHL[there].abs())
    )
    entropy = (found.entropy_BHL.double() - want.entropy_BHL).abs() / (
        4 * product * (1 + want.entropy_BHL) + 2.0**-20 * (1 + want.entropy_BHL)
    )
    assert not found.out_BHLC[~there].any() and not found.entropy_BHL[~there].any()
    return Errors(*(float(t.max()) if t.numel() else 0.0 for t in (out, lse, entropy)))


def _largest_product(inputs: AttentionInputs) -> float:
    """A bound of all products, of sizes too (Cauchy and Schwarz)."""
    keys, own = inputs.keys, inputs.own
    k = keys.k.nan_to_num().double().norm(dim=-1)
    if keys.bits is not None and keys.k_scale is not None:
        integers = unpack(keys.k, keys.bits, inputs.q_BHLC.shape[-1], torch.float64)
        k = (integers * keys.k_scale.nan_to_num().double()[..., None]).norm(dim=-1)
    largest = max(float(k.max()), 0.0 if own is None else float(own.k.double().norm(dim=-1).max()))
    return float(inputs.q_BHLC.double().norm(dim=-1).max()) * largest


def _wider(inputs: AttentionInputs, absolute: bool = False) -> AttentionInputs:
    """The same request in double precision; `absolute` has the sizes of its values."""

    def value(t: Tensor | None) -> Any:
        return t if t is None or not t.is_floating_point() else t.double()

    def entries(e: KVEntries | None) -> Any:
        if e is None:
            return None
        wide = dataclasses.replace(e, k=value(e.k), v=value(e.v), k_scale=value(e.k_scale), v_scale=value(e.v_scale))
        if not absolute:
            return wide
        if e.bits is None:
            return dataclasses.replace(wide, v=wide.v.abs())
        scale = value(e.v_scale)
        # The largest integer for each: an upper bound of the size.
        top = pack(torch.full((*e.v.shape[:-1], inputs.q_BHLC.shape[-1]), 2 ** (e.bits - 1) - 1), e.bits)
        return dataclasses.replace(wide, v=top.to(e.v.device), v_scale=scale.abs())

    return dataclasses.replace(
        inputs, q_BHLC=inputs.q_BHLC.double(), keys=entries(inputs.keys), own=entries(inputs.own)
    )


def mass_error(case: Case, device: str = "cpu") -> float:
    """Attention received by keys against its definition, relative to the number of queries."""
    inputs = made(case._replace(packed=False, lengths=False, index=False, bits=None, own=0, order=False, blocks=False))
    inputs = dataclasses.replace(inputs, queries=None, geometry=None)
    bounds = [case.queries * g // case.groups for g in range(case.groups + 1)]
    q, k = inputs.q_BHLC.to(device), inputs.keys.k.to(device)
    lse = (q.double() @ k.double().mT).logsumexp(-1)
    want = column_mass(q.double(), k.double(), lse, bounds, "reference")
    found = column_mass(q, k, lse.float(), bounds, "triton")
    assert found.shape == (case.rows, case.heads, case.groups, case.keys)
    return float((found.double() - want).abs().max()) / case.queries


def check_operators() -> None:
    """PyTorch's own checks of schema, fake kernel and tracing."""
    rich = Case(packed=True, lengths=True, groups=2, blocks=True, window=True, band=True)
    for case in (Case(), rich, Case(bits=4, own=7, index=True)):
        inputs = made(case)
        torch.library.opcheck(block_attention, (inputs.q_BHLC, *flattened(inputs)))
    inputs = made(Case())
    lse = torch.zeros(inputs.q_BHLC.shape[:3])
    torch.library.opcheck(mass_of_columns, (inputs.q_BHLC, inputs.keys.k, lse, [0, 30, 70]))
