"""Where a policy differs from dense, unit by unit, and the policy with one unit taken back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from varsearch.policy import LINEARS, KVCompression, Policy, SparseAttention, TokenPruning, Weights
from varsearch.target import Frozen

F = TypeVar("F", bound=Frozen)


@dataclass(frozen=True, slots=True)
class Ablation:
    """A change of a policy: one unit that it treats otherwise than dense, and the policy without that.

    Attributes:
        unit: where, such as "layer 2 qkv", "layer 0 head 3", "scale 4 layer 1"; unique within a policy together with
            `kind`.
        kind: which technique.
        setting: what holds there.
        without: the policy with this unit as in dense and all else as it is; None where the rest cannot stand alone.
    """

    unit: str
    kind: str
    setting: str
    without: Policy | None


def ablations(policy: Policy) -> list[Ablation]:
    """Every unit in which `policy` differs from dense, taken back by itself, layers first; none for dense."""
    parts = (_weights, _kv_bits, _heads, _reaches, _keys, _tokens, _sharing, _guidance, _skips, _decisions, _refiner)
    return [change for part in parts for change in part(policy)]


def _weights(policy: Policy) -> Iterator[Ablation]:
    for i, layer in enumerate(policy.layers):
        for name in LINEARS:
            q = getattr(layer.weights, name)
            if q:
                inputs = f", {q.activation_bits}-bit inputs" if q.activation_bits else ""
                grouped = f" in groups of {q.group}" if q.group else ""
                less: Weights = _with(layer.weights, **{name: None})
                yield Ablation(
                    f"layer {i} {name}", "weights", f"{q.bits}-bit{grouped}{inputs}", _layer(policy, i, weights=less)
                )


def _kv_bits(policy: Policy) -> Iterator[Ablation]:
    for i, layer in enumerate(policy.layers):
        if layer.kv.bits:
            yield Ablation(
                f"layer {i}", "KV bits", f"{layer.kv.bits}-bit", _layer(policy, i, kv=_with(layer.kv, bits=None))
            )


def _heads(policy: Policy) -> Iterator[Ablation]:
    """Budgets of one head: what stays of its keys and values, and what it attends to."""
    for i, layer in enumerate(policy.layers):
        kv, scales = layer.kv, range(len(policy.scales))
        n = max(kv.head_counts, default=0)
        for h in range(n):
            # What stays after the last scale is never read.
            kept = {k: kv.cached(k, n)[h] for k in scales[:-1]}
            seen = {k: kv.attended(k, n)[h] for k in scales}
            told = [_shares("kept", kept), _shares("attended", seen)]
            if any(told) or any(kv.cached(k, n)[h] < 1 for k in scales):
                setting = "; ".join(filter(None, told)) or "kept in part after the last scale, without effect"
                yield Ablation(f"layer {i} head {h}", "KV budget", setting, _layer(policy, i, kv=_full_head(kv, h)))


def _full_head(kv: KVCompression, head: int) -> KVCompression | None:
    """The same with all entries of one head."""

    def full(row: Sequence[float]) -> tuple[float, ...]:
        return tuple(1.0 if h == head else share for h, share in enumerate(row))

    tables = {name: tuple(map(full, getattr(kv, name))) for name in ("cache_budget", "attention_budget")}
    return _with(kv, keep=full(kv.keep), **tables)


def _shares(verb: str, by_scale: Mapping[int, float]) -> str:
    """Such as "kept 35% at scale 2, 5% at 3,4"; empty where all is kept."""
    places: dict[float, list[int]] = {}
    for k, share in by_scale.items():
        if share < 1:
            places.setdefault(share, []).append(k)
    if len(places) == 1 and len(by_scale) == len(next(iter(places.values()))):
        return f"{verb} {next(iter(places)):.0%}"
    return f"{verb} " + ", ".join(f"{share:.0%} at {_list(ks)}" for share, ks in places.items()) if places else ""


def _reaches(policy: Policy) -> Iterator[Ablation]:
    """Windows and bands, by layer and scale."""
    for i, layer in enumerate(policy.layers):
        for name in ("window", "band"):
            rows = getattr(layer.attention, name)
            for k, heads in enumerate(rows):
                if any(reach is not None for reach in heads):
                    less = tuple((None,) * len(row) if j == k else row for j, row in enumerate(rows))
                    attention: SparseAttention = _with(layer.attention, **{name: less})
                    without = _layer(policy, i, attention=attention)
                    yield Ablation(f"layer {i} scale {k}", f"attention {name}", _by_head(heads), without)


def _by_head(reaches: Sequence[object]) -> str:
    """Such as "3", or "3 for heads 0,1": several numbers are for the key scales, one after the other."""
    heads: dict[str, list[int]] = {}
    for h, reach in enumerate(reaches):
        parts = reach if isinstance(reach, tuple) else (reach,)
        heads.setdefault("/".join("all" if part is None else str(part) for part in parts), []).append(h)
    if len(heads) == 1:
        return next(iter(heads))
    return ", ".join(f"{reach} for heads {_list(hs)}" for reach, hs in heads.items() if reach != "all")


def _keys(policy: Policy) -> Iterator[Ablation]:
    for i, layer in enumerate(policy.layers):
        chosen = layer.attention.cross_scale
        if chosen:
            without = _layer(policy, i, attention=_with(layer.attention, cross_scale=None))
            yield Ablation(
                f"layer {i}", "chosen keys", f"{chosen.keys:.1%} from scale {chosen.decision_scale}", without
            )


def _tokens(policy: Policy) -> Iterator[Ablation]:
    for k, scale in enumerate(policy.scales):
        tokens = scale.tokens
        for i in tokens.layers(len(policy.layers)) if tokens else ():
            if tokens and tokens.keep_in(i) < 1:
                without = _scale(policy, k, tokens=_all_tokens(tokens, i, len(policy.layers)))
                yield Ablation(f"scale {k} layer {i}", "tokens", f"{tokens.keep_in(i):.0%} of them", without)


def _all_tokens(tokens: TokenPruning, layer: int, n_layers: int) -> TokenPruning | None:
    """The same pruning, except in one layer."""
    shares = tuple(1.0 if i == layer else tokens.keep_in(i) for i in tokens.layers(n_layers))
    return _with(tokens, keep=min(shares), layer_keep=shares) if min(shares) < 1 else None


def _sharing(policy: Policy) -> Iterator[Ablation]:
    for k, scale in enumerate(policy.scales):
        branches = {"attention": scale.shared_attention, "FFN": scale.shared_ffn}
        for i in sorted({*scale.shared_attention, *scale.shared_ffn}):
            shared = " and ".join(name for name, layers in branches.items() if i in layers)
            attention, ffn = (tuple(x for x in layers if x != i) for layers in branches.values())
            guidance = "shared" if attention or ffn else "full"
            without = _scale(policy, k, shared_attention=attention, shared_ffn=ffn, guidance=guidance)
            yield Ablation(f"scale {k} layer {i}", "guidance", f"{shared} shared", without)


def _guidance(policy: Policy) -> Iterator[Ablation]:
    """One unit for all scales without guidance: it cannot resume, so none of them but the first can be taken back."""
    off = [k for k, scale in enumerate(policy.scales) if scale.guidance == "off"]
    if off:
        full = tuple(_with(s, guidance="full") if s.guidance == "off" else s for s in policy.scales)
        yield Ablation(f"scale {off[0]} on", "guidance", "off", _policy(policy, scales=full))


def _skips(policy: Policy) -> Iterator[Ablation]:
    for k, scale in enumerate(policy.scales):
        if not scale.run:
            off = any(s.run and s.guidance == "off" for s in policy.scales[:k])
            yield Ablation(
                f"scale {k}", "scale", "skipped", _scale(policy, k, run=True, guidance="off" if off else "full")
            )


def _decisions(policy: Policy) -> Iterator[Ablation]:
    for decision in policy.decisions:
        less = tuple(d for d in policy.decisions if d != decision)
        other = f"after it {1 - decision.actions[0].share:.0%} of images go another way, by {decision.feature}"
        yield Ablation(f"scale {decision.after}", "decision", other, _policy(policy, decisions=less))


def _refiner(policy: Policy) -> Iterator[Ablation]:
    if policy.refiner:
        without = _policy(policy, refiner=None)
        yield Ablation(f"scale {policy.refiner.first_scale} on", "refiner", policy.refiner.model, without)


def _policy(policy: Policy, **fields: Any) -> Policy | None:
    """The policy with other parts; None where they contradict the rest."""
    try:
        return _with(policy, **fields)
    except ValueError:
        return None


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _layer(policy: Policy, index: int, **fields: Any) -> Policy | None:
    return _policy(policy, layers=_at(policy.layers, index, **fields))


def _scale(policy: Policy, index: int, **fields: Any) -> Policy | None:
    return _policy(policy, scales=_at(policy.scales, index, **fields))


def _at(parts: Sequence[F], index: int, **fields: Any) -> tuple[F, ...]:
    return tuple(_with(part, **fields) if i == index else part for i, part in enumerate(parts))


def _with(part: F, **fields: Any) -> F:
    """The same with other fields, validated, which pydantic's own copy is not."""
    return type(part)(**{**dict(part), **fields})
