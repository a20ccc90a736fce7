"""Units: the smallest places where two policies can differ, and the settings that each of them can have.

A unit is a linear, a head's cache, a layer's cache precision, a layer at a scale (its window, its tokens, the sharing
of either branch), a scale's run; and, for the whole policy, from where guidance is off and from where a refiner runs. A
policy is the dense one with at most one setting at each of its units, except for what depends on more than a unit
(bands, budgets per scale, keys chosen at an earlier scale, decisions): `changes.changes` says which of that it has.

Names tell place and value: `L3.fc1=4bit`, `L3H1.keep=0.5`, `L3S5.tokens=0.25`, `guidance=off from 4`. Layers, heads and
scales count from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from varsearch.errors import PolicyError
from varsearch.policy import LINEARS, Policy, Quantization, Refiner, ScalePolicy, TokenPruning, describe, share_of
from varsearch.space.knobs import BITS, HEAD_KEEP, KV_BITS, RADIUS, TOKEN_KEEP
from varsearch.target import Frozen, ModelSpec

Kind = Literal["bits", "keep", "kv_bits", "window", "tokens", "sharing", "skip", "guidance", "refiner"]
F = TypeVar("F", bound=Frozen)
T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What one unit is set to.

    Args:
        kind: the technique.
        value: precision of a linear, share that stays, bits of a cache, radius in cells; the first unguided scale; the
            refiner; True where there is nothing to choose.
        layer: of the unit; None where it belongs to a scale or to the whole policy. `head` and `scale` likewise.
        part: which linear, or which branch is shared: "attention" or "ffn".
        heads: how many the model has, where the setting is written for all of them.
    """

    kind: Kind
    value: Any
    layer: int | None = None
    head: int | None = None
    scale: int | None = None
    part: str = ""
    heads: int = 0

    @cached_property
    def unit(self) -> str:
        """The place; two settings of one unit exclude each other."""
        places = (("L", self.layer), ("H", self.head), ("S", self.scale))
        place = "".join(f"{letter}{index}" for letter, index in places if index is not None)
        return f"{place}.{self.part or self.kind}" if place else self.kind

    @property
    def name(self) -> str:
        """Place and value."""
        return f"{self.unit}={self._value}"

    @property
    def first_scale(self) -> int:
        """From where guidance is off or a refiner runs; for these kinds alone."""
        return int(getattr(self.value, "first_scale", self.value))

    @property
    def _value(self) -> str:
        match self.value:
            case Quantization(bits=bits, group=group, activation_bits=activation):
                return f"{bits}bit" + (f"/{group}" if group else "") + (f"+a{activation}" if activation else "")
            case Refiner(model=model, first_scale=first):
                return f"{model} from {first}"
            case True:
                return "shared" if self.kind == "sharing" else "yes"
        if self.kind == "guidance":
            return f"off from {self.value}"
        return f"{self.value:g}" + ("bit" if self.kind == "kv_bits" else "")

    def __str__(self) -> str:
        return self.name


def edit(policy: Policy, setting: Setting) -> Policy:
    """`policy` with this setting at its unit, in place of what was there.

    A skipped scale, dropped guidance and a refiner go before the settings that would have no effect behind them: those
    are removed, or not written.

    Raises:
        PolicyError: the rest of the policy contradicts the setting.
    """
    try:
        return _EDITS[setting.kind](policy, setting)
    except ValidationError as error:
        raise PolicyError(f"{setting.name} contradicts the policy: {describe(error)}") from None


def compose(spec: ModelSpec, chosen: Iterable[Setting]) -> Policy:
    """The dense policy with these settings, at most one of a unit; `PolicyError` if they contradict each other."""
    return reduce(edit, chosen, Policy.dense(spec.n_layers, len(spec.scales)))


def settings(spec: ModelSpec, siblings: Sequence[ModelSpec] = ()) -> list[Setting]:
    """Every setting that a policy of `spec` accepts on its own and that changes something, unit by unit.

    Rounded activations are left out: they cost quality and save nothing that any kernel here makes use of.

    Args:
        spec: shape of the model.
        siblings: smaller models with the same tokenizer, as refiners.
    """
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    return [setting for setting in _candidates(spec, siblings) if _accepted(dense, setting, spec)]


def _accepted(dense: Policy, setting: Setting, spec: ModelSpec) -> bool:
    try:
        policy = edit(dense, setting)
        policy.check(spec)
    except PolicyError:
        return False
    return policy != dense


def _candidates(spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
    layers, scales, heads = range(spec.n_layers), range(len(spec.scales)), spec.n_heads
    for i in layers:
        for linear in LINEARS:
            yield from (Setting("bits", Quantization(bits=b), layer=i, part=linear) for b in BITS if b)
        for head in range(heads):
            yield from (Setting("keep", s, layer=i, head=head, heads=heads) for s in HEAD_KEEP[1:])
        yield from (Setting("kv_bits", b, layer=i) for b in KV_BITS if b)
        for k in scales:
            # A window as wide as the map is no window, and a share that rounds up to all tokens prunes none.
            radii = [r for r in RADIUS if r is not None and r < max(spec.scales[k]) - 1]
            shares = [s for s in TOKEN_KEEP if share_of(s, spec.tokens[k]) < spec.tokens[k]]
            yield from (Setting("window", r, layer=i, scale=k, heads=heads) for r in radii)
            yield from (Setting("tokens", s, layer=i, scale=k) for s in shares)
            yield from (Setting("sharing", True, layer=i, scale=k, part=branch) for branch in ("attention", "ffn"))
    yield from (Setting("skip", True, scale=k) for k in scales)
    yield from (Setting("guidance", k) for k in scales)
    for s in siblings:
        refiners = (Refiner(model=s.name, fingerprint=s.fingerprint, first_scale=k) for k in scales[1:])
        yield from (Setting("refiner", refiner) for refiner in refiners)


def _bits(policy: Policy, s: Setting) -> Policy:
    return _with_layer(policy, s, weights={s.part: s.value})


def _keep(policy: Policy, s: Setting) -> Policy:
    assert s.layer is not None and s.head is not None
    keep = policy.layers[s.layer].kv.keep or (1.0,) * s.heads
    return _with_layer(policy, s, kv={"keep": _replaced(keep, s.head, s.value)})


def _kv_bits(policy: Policy, s: Setting) -> Policy:
    return _with_layer(policy, s, kv={"bits": s.value})


def _window(policy: Policy, s: Setting) -> Policy:
    assert s.layer is not None and s.scale is not None
    if not policy.scales[s.scale].run:
        return policy
    rows = policy.layers[s.layer].attention.window or ((None,) * s.heads,) * len(policy.scales)
    return _with_layer(policy, s, attention={"window": _replaced(rows, s.scale, (s.value,) * s.heads)})


def _tokens(policy: Policy, s: Setting) -> Policy:
    assert s.layer is not None and s.scale is not None
    scale, n = policy.scales[s.scale], len(policy.layers)
    if not scale.run or policy.refined(s.scale):
        return policy
    here = scale.tokens
    if here and here.score != "distance":
        raise PolicyError(f"{s.name} contradicts the policy: other layers of the scale prune by {here.score}")
    shares = [here.keep_in(i) if here and i in here.layers(n) else 1.0 for i in range(n)]
    shares[s.layer] = s.value
    pruned = [i for i, share in enumerate(shares) if share < 1]
    first, last = pruned[0], pruned[-1]
    tokens = TokenPruning(
        keep=min(shares),
        first_layer=first,
        last_layer=None if last == n - 1 else last,
        layer_keep=tuple(shares[first : last + 1]),
    )
    return _with_scales(policy, {s.scale: _changed(scale, tokens=tokens)})


def _sharing(policy: Policy, s: Setting) -> Policy:
    assert s.scale is not None
    scale = policy.scales[s.scale]
    if not scale.run or scale.guidance == "off" or policy.refined(s.scale):
        return policy
    field = f"shared_{s.part}"
    layers = tuple(sorted({*getattr(scale, field), s.layer}))
    return _with_scales(policy, {s.scale: _changed(scale, guidance="shared", **{field: layers})})


def _skip(policy: Policy, s: Setting) -> Policy:
    assert s.scale is not None
    for i, layer in enumerate(policy.layers):
        if window := layer.attention.window:
            unseen = _replaced(window, s.scale, (None,) * len(window[s.scale]))
            policy = _with_layer(policy, Setting("window", None, layer=i), attention={"window": unseen})
    return _with_scales(policy, {s.scale: ScalePolicy(run=False)})


def _guidance(policy: Policy, s: Setting) -> Policy:
    def of(k: int, scale: ScalePolicy) -> ScalePolicy:
        if k >= s.value:
            return ScalePolicy(guidance="off", tokens=scale.tokens)
        return _changed(scale, guidance="full") if scale.guidance == "off" else scale

    return _with_scales(policy, {k: of(k, scale) for k, scale in enumerate(policy.scales) if scale.run})


def _refiner(policy: Policy, s: Setting) -> Policy:
    def of(scale: ScalePolicy) -> ScalePolicy:
        return ScalePolicy(run=scale.run, guidance="off" if scale.guidance == "off" else "full")

    refined = {k: of(scale) for k, scale in enumerate(policy.scales) if k >= s.value.first_scale}
    return _with_scales(policy, refined, refiner=s.value)


_EDITS: dict[Kind, Callable[[Policy, Setting], Policy]] = {
    "bits": _bits,
    "keep": _keep,
    "kv_bits": _kv_bits,
    "window": _window,
    "tokens": _tokens,
    "sharing": _sharing,
    "skip": _skip,
    "guidance": _guidance,
    "refiner": _refiner,
}


def _with_layer(policy: Policy, s: Setting, **changed: dict[str, object]) -> Policy:
    """The policy with these fields of the parts of the setting's layer."""
    assert s.layer is not None
    layer = policy.layers[s.layer]
    parts = {name: _changed(getattr(layer, name), **fields) for name, fields in changed.items()}
    return _changed(policy, layers=_replaced(policy.layers, s.layer, _changed(layer, **parts)))


def _with_scales(policy: Policy, changed: Mapping[int, ScalePolicy], **fields: object) -> Policy:
    scales = tuple(changed.get(k, scale) for k, scale in enumerate(policy.scales))
    return _changed(policy, scales=scales, **fields)


def _changed(value: F, **fields: object) -> F:
    """A validated copy with these fields."""
    return type(value).model_validate({**dict(value), **fields})


def _replaced(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])
