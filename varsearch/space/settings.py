"""The decomposition of a policy into settings: every policy is the dense one with a set of settings.

A setting gives one unit a value. A unit is the smallest place where two policies can differ: a
linear, the cache of a head, the precision of a layer's cache, a layer at a scale (its window, its
band, its tokens, the sharing of either branch), a layer's keys across scales, a scale's run, a
decision, and for the whole policy the end of guidance and the begin of a refiner. Two settings of
one unit exclude each other. For every valid policy

    compose(spec, settings_of(policy)) == policy

The order of settings has no effect. A policy is changed through its settings: `apply` replaces the
setting of one unit, `remove` leaves the unit as it is in dense.

This module is the only place that knows the fields of a policy as settings. Each kind of setting is
one class, registered in `KINDS` (see `SettingKind` for the parts of a new one). Everything else
asks the kinds: Optuna's view of a policy, sensitivity profiles, the search and explanations.

Names tell place and value: `L3.fc1=4bit`, `L3H1.keep=0.5`, `L3S5.tokens=0.25`,
`guidance=off from 4`. Layers, heads and scales count from 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import groupby
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import ValidationError

from varsearch.errors import PolicyError
from varsearch.policy import (
    LINEARS,
    KVCompression,
    Policy,
    Quantization,
    Reach,
    Refiner,
    Selection,
    TokenPruning,
    describe,
    share_of,
)
from varsearch.target import ModelSpec

BITS = (8, 6, 4, 3)
KV_BITS = (8, 4)
HEAD_KEEP = (0.75, 0.5, 0.25, 0.125, 0.0)
TOKEN_KEEP = (0.75, 0.5, 0.25)
RADIUS = (3, 2, 1)
"""Values that a search offers, from mild to strong."""

REMEMBERED = 4096
"""Policies whose settings are kept: every proposal asks for those of all trials of a run."""


class Description(NamedTuple):
    """A setting in words: the place, the technique, and the value."""

    place: str
    technique: str
    value: str


@dataclass(frozen=True)
class Setting:
    """The value of one unit.

    Args:
        kind: name of the kind, a key of `KINDS`.
        value: precision of a linear, share of a head's entries or its `HeadBudget`, bits of a
            cache, radius in cells, and so on; True where there is nothing to choose.
        layer: of the unit; None where it belongs to a scale or to the whole policy. `head` and
            `scale` likewise.
        part: which linear, or which branch is shared: "attention" or "ffn".
        heads: number of heads of the model, where a policy lists all of them.
    """

    kind: str
    value: Any
    layer: int | None = None
    head: int | None = None
    scale: int | None = None
    part: str = ""
    heads: int = 0

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # Values may be whole models of pydantic, which hash all their fields each time.
        place = self.layer, self.head, self.scale, self.part, self.heads
        return hash((self.kind, self.value, place))

    @cached_property
    def unit(self) -> str:
        """The place; two settings of one unit exclude each other."""
        places = (("L", self.layer), ("H", self.head), ("S", self.scale))
        place = "".join(f"{letter}{index}" for letter, index in places if index is not None)
        return f"{place}.{self.part or self.kind}" if place else self.kind

    @property
    def name(self) -> str:
        """Place and value."""
        return f"{self.unit}={KINDS[self.kind].text(self.value)}"

    def __str__(self) -> str:
        return self.name

    @property
    def is_frame(self) -> bool:
        """Whether it reaches into other units; see `SettingKind.frame`."""
        return KINDS[self.kind].frame

    @property
    def first_scale(self) -> int:
        """From where guidance is off or a refiner runs; for these kinds alone."""
        return int(getattr(self.value, "first_scale", self.value))

    def apply(self, policy: Policy) -> Policy:
        """`policy` with this setting at its unit, in place of the setting that was there.

        A skipped scale, dropped guidance and a refiner leave no room for some settings behind them
        (see `compose`): those are removed, or not written.

        Raises:
            PolicyError: the rest of the policy contradicts the setting.
        """
        try:
            return _build(_shape(policy), (*settings_of(policy), self))
        except ValueError as error:
            raise PolicyError(f"{self.name} contradicts the policy: {_reason(error)}") from None

    def remove(self, policy: Policy) -> Policy:
        """`policy` with this setting's unit as in dense.

        Raises:
            PolicyError: the rest of the policy cannot stand without it.
        """
        return without(policy, (self,))

    def describe(self) -> Description:
        """Place, technique and value in words."""
        return KINDS[self.kind].describe(self)


Chosen = tuple[Setting, ...]


@lru_cache(REMEMBERED)
def settings_of(policy: Policy) -> Chosen:
    """The settings that make `policy` of the dense one: of the whole policy, of layers, of scales.

    Guidance is off from the first unguided scale that runs.
    """
    found = [setting for kind in KINDS.values() for setting in kind.found(policy)]
    return tuple(sorted(found, key=_home))


def compose(spec: ModelSpec, chosen: Iterable[Setting]) -> Policy:
    """The dense policy with these settings; of several at one unit the last one counts.

    A policy has no room for the tokens and the sharing of a scale that is skipped or that a refiner
    runs, nor for sharing without guidance: those settings are left out.

    Raises:
        PolicyError: the settings contradict each other.
    """
    return _composed((spec.n_layers, len(spec.scales)), chosen)


def composable(spec: ModelSpec, chosen: Iterable[Setting]) -> Policy | None:
    """The policy of these settings, see `compose`; None if they contradict each other."""
    try:
        return compose(spec, chosen)
    except PolicyError:
        return None


def without(policy: Policy, less: Iterable[Setting]) -> Policy:
    """`policy` with the units of these settings as in dense.

    Raises:
        PolicyError: the rest of the policy cannot stand without them.
    """
    units = {setting.unit for setting in less}
    return _composed(_shape(policy), (s for s in settings_of(policy) if s.unit not in units))


def candidates(spec: ModelSpec, siblings: Sequence[ModelSpec] = ()) -> list[Setting]:
    """Every setting that a policy of `spec` accepts alone and that changes something, unit by unit.

    These are the settings that a sensitivity profile measures and that a search mutates. Rounded
    activations are left out: they cost quality and save nothing that any kernel here makes use of.

    Args:
        spec: shape of the model.
        siblings: smaller models with the same tokenizer, as refiners.
    """
    offered = [s for kind in KINDS.values() for s in kind.options(spec, siblings)]
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    return [s for s in sorted(offered, key=_place) if _is_accepted(dense, s, spec)]


def has_effect(frame: Iterable[Setting], chosen: Iterable[Setting]) -> bool:
    """Whether none of `chosen` is at a scale that `frame` skips, refines, or leaves unguided."""
    inner = tuple(chosen)
    return not any(KINDS[outer.kind].hides(outer, setting) for outer in frame for setting in inner)


def _keeps_all(setting: Setting) -> bool:
    """Whether a head's budget bounds nothing that is read."""
    return setting.kind == "keep" and KINDS["keep"].number(setting.value) == 1.0


def effective(chosen: Iterable[Setting]) -> Chosen:
    """The settings that change what a model does; frames (`SettingKind.frame`) come first.

    Settings behind a skipped scale, dropped guidance or a refiner have no effect, nor have bits of
    caches of which no head keeps anything, nor the way in which a head selects that keeps all.
    """
    found = list(chosen)
    kinds = [name for name, kind in KINDS.items() if kind.frame]
    frame = tuple(s for name in kinds for s in found if s.kind == name)
    emptied = Counter((s.layer, s.heads) for s in found if s.kind == "keep" and not s.value)
    empty = {layer for (layer, heads), n in emptied.items() if n == heads}
    inner = (s for s in found if not s.is_frame and not KINDS[s.kind].spelling)
    kept = (s for s in inner if not ((s.kind == "kv_bits" and s.layer in empty) or _keeps_all(s)))
    return frame + tuple(s for s in kept if has_effect(frame, (s,)))


@dataclass
class Draft:
    """The fields of a policy before they are validated; a field that is absent is off.

    Attributes:
        layers: by layer, the fields of `LayerPolicy`.
        scales: by scale, the fields of `ScalePolicy`.
        fields: further fields of `Policy`.
    """

    layers: list[dict[str, Any]]
    scales: list[dict[str, Any]]
    fields: dict[str, Any] = field(default_factory=dict)

    def policy(self) -> Policy:
        """The policy with these fields; `ValidationError` if they contradict each other."""
        return Policy.model_validate({"layers": self.layers, "scales": self.scales, **self.fields})

    def part(self, layer: int | None, name: str) -> dict[str, Any]:
        """The fields of one part of a layer, such as `kv`."""
        assert layer is not None
        found: dict[str, Any] = self.layers[layer].setdefault(name, {})
        return found


class SettingKind(ABC):
    """One kind of setting, which is one technique at one sort of place.

    A new kind needs `name`, `technique`, `found` and `write`; `options` if the search may choose
    it; the rest has defaults.

    Attributes:
        name: the kind, `Setting.kind`.
        technique: in words.
        home: where a policy writes it: in the whole policy, in a layer, or in a scale.
        frame: whether it reaches into other units: the time that it saves multiplies with theirs.
        idles: whether a policy may hold it behind a frame that leaves it without effect.
        spelling: whether it only tells how a policy is written, without any effect.
        saves: which bytes it saves, if any.
        guess: without a profile, relative loss of quality, time and memory where all units of the
            kind have their strongest setting.
        off: the number (see `number`) of a unit that is as in dense, where it has one.
        letter: a letter for charts of layers by scales, and its meaning, where the kind acts there.
    """

    name: ClassVar[str]
    technique: ClassVar[str]
    home: ClassVar[Literal["policy", "layer", "scale"]] = "layer"
    frame: ClassVar[bool] = False
    idles: ClassVar[bool] = False
    spelling: ClassVar[bool] = False
    saves: ClassVar[Literal["weights", "caches"] | None] = None
    guess: ClassVar[tuple[float, float, float]] = (1.0, 0.0, 0.0)
    off: ClassVar[float | None] = None
    letter: ClassVar[tuple[str, str] | None] = None

    @abstractmethod
    def found(self, policy: Policy) -> Iterator[Setting]:
        """The settings of this kind that a policy has."""

    @abstractmethod
    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        """Writes all settings of this kind into a draft; `ValueError` if they contradict."""

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        """The settings that a search may choose, unit by unit; none by default."""
        return iter(())

    def strength(self, setting: Setting) -> float:
        """Orders the options of a unit from mild to strong, where `options` does not."""
        return 0.0

    def number(self, value: Any) -> float:
        """A number by which values of a unit are compared: the nearer, the more alike."""
        return float(value)

    def hides(self, frame: Setting, inner: Setting) -> bool:
        """Whether a setting of this kind, which is a frame, leaves `inner` without effect."""
        return False

    def acts(self, setting: Setting, layer: int, scale: int) -> bool:
        """Whether a setting changes how `layer` runs `scale`."""
        return setting.layer in (None, layer) and setting.scale in (None, scale)

    def text(self, value: Any) -> str:
        """The value as names show it."""
        return f"{value:g}"

    def describe(self, setting: Setting) -> Description:
        """Place, technique and value in words."""
        places = [("layer", setting.layer), ("scale", setting.scale)]
        ordered = places if self.home == "layer" else places[::-1]
        head = f"head {setting.head}" if setting.head is not None else ""
        told = [f"{name} {index}" for name, index in ordered if index is not None]
        part = setting.part if setting.scale is None else ""
        place = " ".join(filter(None, (*told, part, head)))
        return Description(place, self.technique, self.words(setting))

    def words(self, setting: Setting) -> str:
        """The value in words."""
        return self.text(setting.value)


KINDS: dict[str, SettingKind] = {}
"""All kinds of settings by name."""


def register(kind: SettingKind) -> None:
    """Adds a kind of setting."""
    KINDS[kind.name] = kind
    settings_of.cache_clear()


class LinearPrecision(SettingKind):
    """Precision of one linear: a `Quantization`."""

    name, technique, saves, guess = "bits", "weights", "weights", (1.0, 0.0, -0.5)

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        """Weights alone, without groups."""
        for i in range(spec.n_layers):
            for linear in LINEARS:
                for bits in BITS:
                    value = Quantization.model_validate({"bits": bits})
                    yield Setting(self.name, value, layer=i, part=linear)

    def found(self, policy: Policy) -> Iterator[Setting]:
        for i, layer in enumerate(policy.layers):
            for linear in LINEARS:
                if value := getattr(layer.weights, linear):
                    yield Setting(self.name, value, layer=i, part=linear)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for s in chosen:
            draft.part(s.layer, "weights")[s.part] = s.value

    def number(self, value: Quantization) -> float:
        return float(value.bits)

    def text(self, value: Quantization) -> str:
        """Bits, groups and bits of activations."""
        group = f"/{value.group}" if value.group else ""
        activations = f"+a{value.activation_bits}" if value.activation_bits else ""
        return f"{value.bits}bit{group}{activations}"

    def words(self, setting: Setting) -> str:
        q: Quantization = setting.value
        group = f" in groups of {q.group}" if q.group else ""
        inputs = f", {q.activation_bits}-bit inputs" if q.activation_bits else ""
        return f"{q.bits}-bit{group}{inputs}"


USUAL_SELECTION = Selection()


@dataclass(frozen=True)
class HeadBudget:
    """How much of one head's keys and values stays in the cache and is attended to.

    A head that keeps the same share after every scale, and attends to everything, has this share as
    its value instead.

    Args:
        cached: the share that stays, after every scale or after each.
        attended: the share that the queries of each scale attend to; empty is everything.
        selection: which entries fill these budgets.
    """

    cached: float | tuple[float, ...] = 1.0
    attended: tuple[float, ...] = ()
    selection: Selection = USUAL_SELECTION

    @classmethod
    def of(cls, value: HeadBudget | float) -> HeadBudget:
        """The budget that a value stands for."""
        return value if isinstance(value, HeadBudget) else cls(cached=value)

    def value(self) -> HeadBudget | float | tuple[float, ...]:
        """The value that stands for this budget."""
        is_share = not isinstance(self.cached, tuple) and self == HeadBudget(self.cached)
        return self.cached if is_share else self

    def after(self, scale: int) -> float:
        """The share that stays after a scale."""
        return self.cached[scale] if isinstance(self.cached, tuple) else self.cached


class HeadBudgets(SettingKind):
    """What stays of one head's keys and values: a share of all entries, or a `HeadBudget`."""

    name, technique, saves, guess, off = "keep", "KV budget", "caches", (1.0, -0.1, -0.4), 1.0

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        """The same share after every scale."""
        for i in range(spec.n_layers):
            for head in range(spec.n_heads):
                for share in HEAD_KEEP:
                    yield Setting(self.name, share, layer=i, head=head, heads=spec.n_heads)

    def found(self, policy: Policy) -> Iterator[Setting]:
        for i, layer in enumerate(policy.layers):
            for head, budget in enumerate(_budgets(layer.kv)):
                if budget != HeadBudget():
                    heads = max(layer.kv.head_counts)
                    yield Setting(self.name, budget.value(), layer=i, head=head, heads=heads)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        """All heads of a layer together, because a layer writes one table of them."""
        scales = range(len(draft.scales))
        for layer, some in _by(chosen, "layer"):
            budgets = [HeadBudget()] * some[0].heads
            for s in some:
                assert s.head is not None
                budgets[s.head] = HeadBudget.of(s.value)
            kv = draft.part(layer, "kv")
            if any(isinstance(budget.cached, tuple) for budget in budgets):
                kv["cache_budget"] = [[b.after(k) for b in budgets] for k in scales]
            else:
                kv["keep"] = [b.cached for b in budgets]
            if any(b.attended for b in budgets):
                rows = [[b.attended[k] if b.attended else 1.0 for b in budgets] for k in scales]
                kv["attention_budget"] = rows
            if any(b.selection != USUAL_SELECTION for b in budgets):
                kv["selection"] = [b.selection for b in budgets]

    def number(self, value: HeadBudget | float) -> float:
        """The mean share over scales that is attended to or kept, whichever is less."""
        budget = HeadBudget.of(value)
        cached = budget.cached
        # What stays after the last scale is never read.
        kept = fmean(cached[:-1] or cached) if isinstance(cached, tuple) else cached
        return min(kept, fmean(budget.attended or (1.0,)))

    def text(self, value: HeadBudget | float) -> str:
        """A share, or the budgets in words."""
        return f"{value:g}" if not isinstance(value, HeadBudget) else _budget_words(value)

    def words(self, setting: Setting) -> str:
        """What is kept, and what is attended to."""
        return _budget_words(HeadBudget.of(setting.value))


def _budgets(kv: KVCompression) -> list[HeadBudget]:
    """The budget of each head; none where the layer has none."""
    heads = max(kv.head_counts, default=0)
    columns = list(zip(*kv.cache_budget, strict=True))
    # Equal shares after every scale are written so only if no other head's differ.
    varies = any(len(set(column)) > 1 for column in columns)
    attended = list(zip(*kv.attention_budget, strict=True))
    found = []
    for h in range(heads):
        cached: float | tuple[float, ...] = kv.keep[h] if kv.keep else 1.0
        if columns:
            one_share = len(set(columns[h])) == 1 and (varies or columns[h][0] == 1)
            cached = columns[h][0] if one_share else columns[h]
        seen = attended[h] if attended and min(attended[h]) < 1 else ()
        rule = kv.selection[h] if kv.selection else USUAL_SELECTION
        found.append(HeadBudget(cached, seen, rule))
    return found


def _budget_words(budget: HeadBudget) -> str:
    """Such as "kept 50% at 1,2, 25% at 3; attended 30%"."""
    cached = budget.cached
    kept = dict(enumerate(cached[:-1])) if isinstance(cached, tuple) else {0: cached}
    told = [_shares("kept", kept), _shares("attended", dict(enumerate(budget.attended)))]
    if not any(told) and isinstance(cached, tuple):
        return "kept in part after the last scale, without effect"
    return "; ".join(filter(None, told)) or "selection rule alone, without effect"


def _shares(verb: str, by_scale: Mapping[int, float]) -> str:
    """Such as "kept 35% at 2, 5% at 3,4"; empty where all is kept."""
    places: dict[float, list[int]] = {}
    for k, share in by_scale.items():
        if share < 1:
            places.setdefault(share, []).append(k)
    if not places:
        return ""
    if len(places) == 1 and len(by_scale) == len(next(iter(places.values()))):
        return f"{verb} {next(iter(places)):.0%}"
    return f"{verb} " + ", ".join(f"{share:.0%} at {_list(ks)}" for share, ks in places.items())


class CachePrecision(SettingKind):
    """Bits of a layer's stored keys and values."""

    name, technique, saves, guess = "kv_bits", "KV bits", "caches", (0.5, 0.0, -0.3)

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        for i in range(spec.n_layers):
            yield from (Setting(self.name, bits, layer=i) for bits in KV_BITS)

    def found(self, policy: Policy) -> Iterator[Setting]:
        for i, layer in enumerate(policy.layers):
            if layer.kv.bits:
                yield Setting(self.name, layer.kv.bits, layer=i)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for s in chosen:
            draft.part(s.layer, "kv")["bits"] = s.value

    def text(self, value: int) -> str:
        return f"{value}bit"

    def words(self, setting: Setting) -> str:
        return f"{setting.value}-bit"


@dataclass(frozen=True)
class ByHead:
    """What each head of a layer sees at a scale, where they differ."""

    reaches: tuple[Reach, ...]


class LocalAttention(SettingKind):
    """What a layer sees at a scale: a `Reach` of all heads, or `ByHead`.

    `name` is the field of `SparseAttention`.
    """

    idles, guess = True, (0.5, -0.05, 0.0)

    def found(self, policy: Policy) -> Iterator[Setting]:
        for i, layer in enumerate(policy.layers):
            for k, row in enumerate(getattr(layer.attention, self.name)):
                if any(reach is not None for reach in row):
                    value = row[0] if len(set(row)) == 1 else ByHead(row)
                    yield Setting(self.name, value, layer=i, scale=k, heads=len(row))

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for layer, some in _by(chosen, "layer"):
            rows: list[tuple[Reach, ...]] = [(None,) * some[0].heads] * len(draft.scales)
            for s in some:
                assert s.scale is not None
                rows[s.scale] = _reaches(s)
            draft.part(layer, "attention")[self.name] = rows

    def number(self, value: Reach | ByHead) -> float:
        """The mean of all finite reaches."""
        reaches = value.reaches if isinstance(value, ByHead) else (value,)
        parts = [r for reach in reaches for r in (reach if isinstance(reach, tuple) else (reach,))]
        return fmean(r for r in parts if r is not None)

    def text(self, value: Reach | ByHead) -> str:
        """Such as "3", or "3 for heads 0,1": several numbers are for the key scales in turn."""
        if not isinstance(value, ByHead):
            return _reach_text(value)
        heads: dict[str, list[int]] = {}
        for head, reach in enumerate(value.reaches):
            heads.setdefault(_reach_text(reach), []).append(head)
        limited = ((reach, hs) for reach, hs in heads.items() if reach != "all")
        return ", ".join(f"{reach} for heads {_list(hs)}" for reach, hs in limited)


class Windows(LocalAttention):
    """A radius in cells."""

    name, technique = "window", "attention window"
    letter = "W", "attention windows"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        """One radius for all heads; a window as wide as the map is no window."""
        for i in range(spec.n_layers):
            for k, size in enumerate(spec.scales):
                for radius in (r for r in RADIUS if r < max(size) - 1):
                    yield Setting(self.name, radius, layer=i, scale=k, heads=spec.n_heads)


class Bands(LocalAttention):
    """A half-width in raster order."""

    name, technique = "band", "attention band"
    letter = "B", "attention bands"


def _reaches(s: Setting) -> tuple[Reach, ...]:
    return s.value.reaches if isinstance(s.value, ByHead) else (s.value,) * s.heads


def _reach_text(reach: Reach) -> str:
    parts = reach if isinstance(reach, tuple) else (reach,)
    return "/".join("all" if part is None else str(part) for part in parts)


class ChosenKeys(SettingKind):
    """Keys of a layer that are chosen at one scale for the later ones: a `CrossScale`."""

    name, technique, guess = "cross_scale", "chosen keys", (0.5, -0.05, 0.0)
    letter = "K", "keys chosen at an earlier scale"

    def found(self, policy: Policy) -> Iterator[Setting]:
        for i, layer in enumerate(policy.layers):
            if layer.attention.cross_scale:
                yield Setting(self.name, layer.attention.cross_scale, layer=i)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for s in chosen:
            draft.part(s.layer, "attention")["cross_scale"] = s.value

    def number(self, value: Any) -> float:
        return float(value.keys)

    def acts(self, setting: Setting, layer: int, scale: int) -> bool:
        """Behind the scale that decides."""
        return setting.layer == layer and scale > setting.value.decision_scale

    def text(self, value: Any) -> str:
        return f"{value.keys:.1%} from scale {value.decision_scale}"


@dataclass(frozen=True)
class TokenShare:
    """The share of tokens that a layer runs on, chosen by another score than "distance"."""

    keep: float
    score: str


class Tokens(SettingKind):
    """The share of a scale's tokens that a layer runs on: a number, or a `TokenShare`."""

    name, technique, home, guess, off = "tokens", "tokens", "scale", (2.0, -0.5, -0.1), 1.0
    letter = "T", "tokens pruned"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        """By distance; a share that rounds up to all tokens prunes none."""
        for i in range(spec.n_layers):
            for k, n in enumerate(spec.tokens):
                for share in (s for s in TOKEN_KEEP if share_of(s, n) < n):
                    yield Setting(self.name, share, layer=i, scale=k)

    def found(self, policy: Policy) -> Iterator[Setting]:
        for k, scale in enumerate(policy.scales):
            for i in scale.tokens.layers(len(policy.layers)) if scale.tokens else ():
                if scale.tokens and (keep := scale.tokens.keep_in(i)) < 1:
                    score = scale.tokens.score
                    value = keep if score == "distance" else TokenShare(keep, score)
                    yield Setting(self.name, value, layer=i, scale=k)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        """All layers of a scale together."""
        n = len(draft.layers)
        for k, some in _by(chosen, "scale"):
            scores = sorted({getattr(s.value, "score", "distance") for s in some})
            if len(scores) > 1:
                others = " and by ".join(scores)
                raise ValueError(f"layers of scale {k} prune by {others}: choose one")
            shares = [1.0] * n
            for s in some:
                assert s.layer is not None
                shares[s.layer] = self.number(s.value)
            first, last = min(s.layer or 0 for s in some), max(s.layer or 0 for s in some)
            draft.scales[k]["tokens"] = {
                "keep": min(shares),
                "first_layer": first,
                "last_layer": None if last == n - 1 else last,
                "layer_keep": shares[first : last + 1],
                "score": scores[0],
            }

    def number(self, value: TokenShare | float) -> float:
        return value.keep if isinstance(value, TokenShare) else value

    def text(self, value: TokenShare | float) -> str:
        """The share, and what it is chosen by."""
        return f"{value.keep:g} by {value.score}" if isinstance(value, TokenShare) else f"{value:g}"

    def words(self, setting: Setting) -> str:
        by = f", by {setting.value.score}" if isinstance(setting.value, TokenShare) else ""
        return f"{self.number(setting.value):.0%} of them{by}"


class TokenLayers(SettingKind):
    """The range of layers that a scale's pruning names, where it names more than it prunes.

    The range has no effect, but it is part of a policy and of its digest.
    """

    name, technique, home, spelling = "token_layers", "tokens", "scale", True

    def found(self, policy: Policy) -> Iterator[Setting]:
        n = len(policy.layers)
        for k, scale in enumerate(policy.scales):
            if scale.tokens is None:
                continue
            pruned = [i for i in scale.tokens.layers(n) if policy.prunes(k, i)]
            usual = pruned[0], None if pruned[-1] == n - 1 else pruned[-1]
            named = scale.tokens.first_layer, scale.tokens.last_layer
            if named != usual:
                yield Setting(self.name, named, scale=k)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        """Widens the range; where nothing is pruned, or more than the range, there is none."""
        n = len(draft.layers)
        for s in chosen:
            tokens = draft.scales[s.scale or 0].get("tokens")
            if tokens is None:
                continue
            pruning = TokenPruning.model_validate(tokens)
            first, last = s.value
            wide = range(first, n if last is None else last + 1)
            if {*pruning.layers(n)} <= {*wide}:
                inside = [pruning.keep_in(i) if i in pruning.layers(n) else 1.0 for i in wide]
                tokens.update(first_layer=first, last_layer=last, layer_keep=inside)

    def number(self, value: tuple[int, int | None]) -> float:
        return float(value[0])

    def text(self, value: tuple[int, int | None]) -> str:
        return f"{value[0]}..{'' if value[1] is None else value[1]}"

    def words(self, setting: Setting) -> str:
        return f"pruning names layers {self.text(setting.value)}, without effect"


class Sharing(SettingKind):
    """A layer's attention or FFN at a scale, computed for the conditional rows alone."""

    name, technique, home, guess = "sharing", "guidance", "scale", (0.5, -0.2, 0.0)
    letter = "G", "guidance shared"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        for i in range(spec.n_layers):
            for k in range(len(spec.scales)):
                for branch in ("attention", "ffn"):
                    yield Setting(self.name, True, layer=i, scale=k, part=branch)

    def found(self, policy: Policy) -> Iterator[Setting]:
        """Scale by scale, attention first."""
        for k, scale in enumerate(policy.scales):
            for part, layers in (("attention", scale.shared_attention), ("ffn", scale.shared_ffn)):
                yield from (Setting(self.name, True, layer=i, scale=k, part=part) for i in layers)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        """Into the lists of the scale."""
        for s in sorted(chosen, key=lambda s: s.layer or 0):
            fields = draft.scales[s.scale or 0]
            fields["guidance"] = "shared"
            fields.setdefault(f"shared_{s.part}", []).append(s.layer)

    def text(self, value: bool) -> str:
        return "shared"

    def words(self, setting: Setting) -> str:
        return f"{'FFN' if setting.part == 'ffn' else setting.part} shared"


class SkippedScale(SettingKind):
    """A scale that does not run."""

    name, technique, home, frame = "skip", "scale", "policy", True
    saves, guess = "caches", (8.0, -1.0, -0.5)
    letter = "S", "scale skipped"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        return (Setting(self.name, True, scale=k) for k in range(len(spec.scales)))

    def found(self, policy: Policy) -> Iterator[Setting]:
        skipped = (k for k, scale in enumerate(policy.scales) if not scale.run)
        return (Setting(self.name, True, scale=k) for k in skipped)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for s in chosen:
            draft.scales[s.scale or 0]["run"] = False

    def hides(self, frame: Setting, inner: Setting) -> bool:
        """What layers do at this scale."""
        return inner.layer is not None and inner.scale == frame.scale

    def text(self, value: bool) -> str:
        return "yes"

    def words(self, setting: Setting) -> str:
        return "skipped"


class DroppedGuidance(SettingKind):
    """The first scale whose unconditional rows are dropped."""

    name, technique, home, frame = "guidance", "guidance", "policy", True
    saves, guess = "caches", (1.0, -0.5, -0.3)
    letter = "g", "guidance off"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        return (Setting(self.name, k) for k in range(len(spec.scales)))

    def found(self, policy: Policy) -> Iterator[Setting]:
        """The first such scale that runs."""
        unguided = [k for k, scale in enumerate(policy.scales) if scale.guidance == "off"]
        return (Setting(self.name, k) for k in unguided[:1])

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        """Into `guidance` of all scales from there on that run."""
        for s in chosen:
            for fields in draft.scales[s.value :]:
                if fields.get("run", True):
                    fields["guidance"] = "off"

    def strength(self, setting: Setting) -> float:
        """The later guidance ends, the milder."""
        return -float(setting.first_scale)

    def hides(self, frame: Setting, inner: Setting) -> bool:
        """Shared guidance."""
        return inner.kind == Sharing.name and (inner.scale or 0) >= frame.first_scale

    def acts(self, setting: Setting, layer: int, scale: int) -> bool:
        return scale >= setting.first_scale

    def text(self, value: int) -> str:
        return f"off from {value}"

    def describe(self, setting: Setting) -> Description:
        return Description(f"scale {setting.value} on", self.technique, "off")


class SmallerModel(SettingKind):
    """A refiner: a smaller model that runs the late scales."""

    name, technique, home, frame = "refiner", "refiner", "policy", True
    saves, guess = "caches", (1.0, -0.7, -0.3)
    letter = "R", "run by the refiner"

    def options(self, spec: ModelSpec, siblings: Sequence[ModelSpec]) -> Iterator[Setting]:
        """Any sibling from any scale but the first."""
        for other in siblings:
            for k in range(1, len(spec.scales)):
                refiner = Refiner(model=other.name, fingerprint=other.fingerprint, first_scale=k)
                yield Setting(self.name, refiner)

    def found(self, policy: Policy) -> Iterator[Setting]:
        if policy.refiner is not None:
            yield Setting(self.name, policy.refiner)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        for s in chosen:
            draft.fields["refiner"] = s.value

    def strength(self, setting: Setting) -> float:
        """The later a refiner begins, the milder."""
        return -float(setting.first_scale)

    def number(self, value: Refiner) -> float:
        return float(value.first_scale)

    def hides(self, frame: Setting, inner: Setting) -> bool:
        """What layers of the model itself do from there on."""
        placed = inner.layer is not None and inner.scale is not None
        return placed and (inner.scale or 0) >= frame.first_scale

    def acts(self, setting: Setting, layer: int, scale: int) -> bool:
        return scale >= setting.first_scale

    def text(self, value: Refiner) -> str:
        return f"{value.model} from {value.first_scale}"

    def describe(self, setting: Setting) -> Description:
        place = f"scale {setting.value.first_scale} on"
        return Description(place, self.technique, setting.value.model)


class ImageDecision(SettingKind):
    """A decision that each image takes after a scale: a `Decision`."""

    name, technique, home, guess = "decision", "decision", "policy", (1.0, -0.2, 0.0)

    def found(self, policy: Policy) -> Iterator[Setting]:
        return (Setting(self.name, decision, scale=decision.after) for decision in policy.decisions)

    def write(self, draft: Draft, chosen: Sequence[Setting]) -> None:
        ordered = sorted(chosen, key=lambda s: s.scale or 0)
        draft.fields["decisions"] = [s.value for s in ordered]

    def number(self, value: Any) -> float:
        """The share of images that keep to the policy's own scales."""
        return float(value.actions[0].share)

    def acts(self, setting: Setting, layer: int, scale: int) -> bool:
        return scale > setting.value.after

    def text(self, value: Any) -> str:
        """What is asked, and how many images go another way."""
        return f"{value.feature} {1 - value.actions[0].share:.0%}"

    def words(self, setting: Setting) -> str:
        away = 1 - setting.value.actions[0].share
        return f"after it {away:.0%} of images go another way, by {setting.value.feature}"


for _kind in (
    LinearPrecision(),
    HeadBudgets(),
    CachePrecision(),
    Windows(),
    Bands(),
    ChosenKeys(),
    Tokens(),
    TokenLayers(),
    Sharing(),
    SkippedScale(),
    DroppedGuidance(),
    SmallerModel(),
    ImageDecision(),
):
    register(_kind)


Shape = tuple[int, int]
"""Number of layers and of scales."""


def _shape(policy: Policy) -> Shape:
    return len(policy.layers), len(policy.scales)


def _build(shape: Shape, chosen: Iterable[Setting]) -> Policy:
    """The policy of these settings; `ValueError` if they contradict each other."""
    units = {setting.unit: setting for setting in chosen}
    frames = [s for s in units.values() if s.is_frame]
    layers, scales = shape
    draft = Draft([{} for _ in range(layers)], [{} for _ in range(scales)])
    standing: dict[str, list[Setting]] = {name: [] for name in KINDS}
    for s in units.values():
        if KINDS[s.kind].idles or has_effect(frames, (s,)):
            standing[s.kind].append(s)
    for name, kind in KINDS.items():
        kind.write(draft, standing[name])
    return draft.policy()


def _composed(shape: Shape, chosen: Iterable[Setting]) -> Policy:
    try:
        return _build(shape, chosen)
    except ValueError as error:
        raise PolicyError(f"the settings contradict each other: {_reason(error)}") from None


def _reason(error: ValueError) -> str:
    return describe(error) if isinstance(error, ValidationError) else str(error)


def _is_accepted(dense: Policy, setting: Setting, spec: ModelSpec) -> bool:
    try:
        policy = setting.apply(dense)
        policy.check(spec)
    except PolicyError:
        return False
    return policy != dense


def _home(s: Setting) -> tuple[int, int, bool]:
    """The order of a policy's settings, which names of stored profiles have."""
    home = KINDS[s.kind].home
    if home == "policy":
        return 0, 0, False
    if home == "layer":
        return 1, s.layer or 0, False
    return 2, s.scale or 0, not s.part  # sharing before tokens


def _place(s: Setting) -> tuple[bool, int, int, bool]:
    """The order of the settings that a search may choose, which stored profiles have."""
    if s.layer is None:
        return True, 0, 0, False
    at_scale = s.scale is not None
    return False, s.layer, s.scale if s.scale is not None else -1, bool(at_scale and s.part)


def _by(chosen: Iterable[Setting], place: str) -> Iterator[tuple[int, list[Setting]]]:
    """Settings that belong together, by layer or by scale."""

    def of(setting: Setting) -> int:
        return int(getattr(setting, place))

    ordered = sorted(chosen, key=of)
    return ((index, list(some)) for index, some in groupby(ordered, of))


def _list(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
