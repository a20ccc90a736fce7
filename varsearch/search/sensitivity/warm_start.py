"""Policies to start a search from, by what a profile says: much saved for little loss.

If losses and costs add up, the policies on the convex hull of the best trade-offs are those that minimize the loss plus
a price on what is not saved, and at a given price each unit is decided on its own (Lagrange multipliers over discrete
choices: Everett 1963, Operations Research 11). Prices from low to high, on latency, on memory and on both, give a path
from mild to strong policies. What reaches into other units (guidance, a skipped scale, a refiner) is enumerated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np

from varsearch.policy import Policy
from varsearch.search.sensitivity.additive_model import Estimates
from varsearch.sensitivity_profile import Cost, Profile
from varsearch.space.settings import KINDS, Chosen, Setting, compose, has_effect, settings_of

MIXTURES = ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))
"""How a price is divided between latency and memory, each as a share of dense's. Neither is free: the smallest policies
would take several times as long for their last bytes."""

PRICES = np.geomspace(1e-4, 1e3, 141).tolist()
"""Loss that may be paid for all that dense costs."""

MAX_LOSS = 2.0
"""What a start may lose at most by prediction, about a ΔFID: stronger policies are broken."""


@dataclass(frozen=True, slots=True)
class Option:
    """Settings that are chosen together, their loss, and what they save: shares of dense's latency and memory."""

    chosen: Chosen
    loss: float
    saved: tuple[float, float]


OFF = Option((), 0.0, (0.0, 0.0))


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A policy with its predicted loss, and its predicted cost on the profile's target."""

    policy: Policy
    chosen: Chosen
    loss: float
    cost: Cost


def warm_starts(profile: Profile, n: int = 24, max_loss: float = MAX_LOSS) -> list[WarmStart]:
    """At most `n` different policies from mild to strong, of predicted losses up to `max_loss`; dense is none of them.

    For every mixture of prices about equally many, evenly spread over what they save. Depends on the arguments alone.
    """
    estimates = Estimates(profile)
    frames, groups = frames_of(estimates), groups_of(estimates)
    paths = [
        [found for found in path(frames, groups, mixture) if 0 < estimates.predicted_loss(found.chosen) <= max_loss]
        for mixture in MIXTURES
    ]
    starts: dict[str, WarmStart] = {}
    for i, (mixture, found) in enumerate(zip(MIXTURES, paths, strict=True)):
        share = (n - len(starts)) // (len(MIXTURES) - i)
        for option in spread(found, mixture, share):
            policy = compose(profile.spec, option.chosen)
            starts.setdefault(policy.digest, _start(policy, option, estimates))
    return sorted(starts.values(), key=lambda start: start.loss)


def path(frames: Sequence[Option], groups: Sequence[Sequence[Option]], mixture: tuple[float, float]) -> list[Option]:
    """The best whole choice for each price on latency and memory in this proportion, from low to high, each once.

    Args:
        frames: alternatives of which one is chosen.
        groups: of each at most one option is chosen, unless the frame leaves it without effect.
        mixture: shares of the price.
    """
    tables = [_Table(frame, groups, mixture) for frame in frames]
    found = [min(tables, key=lambda table: table.value(price)).choice(price) for price in PRICES]
    return list(dict.fromkeys(found))


def spread(found: Sequence[Option], mixture: tuple[float, float], n: int) -> list[Option]:
    """At most `n` of them, as evenly as there are some over what they save, the strongest one among them."""
    if len(found) <= n:
        return list(found)
    saved = np.array([_dot(mixture, option.saved) for option in found])
    nearest = [int(np.abs(saved - x).argmin()) for x in saved.max() * np.linspace(0, 1, n + 1)[1:]]
    return [found[i] for i in dict.fromkeys(nearest)]


class _Table:
    """What can be chosen with one frame: losses and savings by group and option, "off" first."""

    def __init__(self, frame: Option, groups: Sequence[Sequence[Option]], mixture: tuple[float, float]) -> None:
        self.frame, self.mixture = frame, mixture
        self.groups = [
            [OFF, *(_behind(frame, o) for o in group if has_effect(frame.chosen, o.chosen))] for group in groups
        ]
        shape = len(groups), max(map(len, self.groups), default=1)
        self.loss_GO, self.saved_GO = np.full(shape, np.inf), np.zeros(shape)
        for g, group in enumerate(self.groups):
            self.loss_GO[g, : len(group)] = [option.loss for option in group]
            self.saved_GO[g, : len(group)] = [_dot(mixture, option.saved) for option in group]

    def value(self, price: float) -> float:
        """The least of loss minus price times savings."""
        frame = self.frame.loss - price * _dot(self.mixture, self.frame.saved)
        return frame + float((self.loss_GO - price * self.saved_GO).min(1).sum())

    def choice(self, price: float) -> Option:
        """The options that have it, together."""
        chosen_G = (self.loss_GO - price * self.saved_GO).argmin(1)
        return _together([self.frame, *(group[o] for group, o in zip(self.groups, chosen_G, strict=True))])


def _together(options: Sequence[Option]) -> Option:
    saved = tuple(sum(option.saved[i] for option in options) for i in range(2))
    return Option(
        chosen=tuple(setting for option in options for setting in option.chosen),
        loss=sum(option.loss for option in options),
        saved=(saved[0], saved[1]),
    )


def _behind(frame: Option, option: Option) -> Option:
    """The option saves its share of what the frame leaves."""
    saved = option.saved[0] * (1 - frame.saved[0]), option.saved[1] * (1 - frame.saved[1])
    return replace(option, saved=saved)


def _dot(a: tuple[float, float], b: tuple[float, float]) -> float:
    return a[0] * b[0] + a[1] * b[1]


def frames_of(estimates: Estimates) -> list[Option]:
    """Guidance off from any scale or not, with a scale skipped, a refiner, or neither."""
    singles = [setting for (setting,) in estimates.probes.singles.values()]
    guidance = [(s,) for s in singles if s.kind == "guidance"]
    others = [(s,) for s in singles if s.is_frame and s.kind != "guidance"]
    pairs = [outer + other for outer, other in product([(), *guidance], [(), *others])]
    # Guidance that ends at a skipped scale ends at the next one, which is another pair.
    spec = estimates.profile.spec
    distinct = [pair for pair in pairs if settings_of(compose(spec, pair)) in permutations(pair)]
    return [_option(estimates, pair) for pair in distinct]


def groups_of(estimates: Estimates) -> list[list[Option]]:
    """The settings of each unit; those of a layer's cache together, because what is not kept needs no bits."""
    units: dict[str, list[Setting]] = {}
    caches: dict[int | None, list[Setting]] = {}
    for (setting,) in estimates.probes.singles.values():
        if setting.layer is not None and KINDS[setting.kind].saves == "caches":
            caches.setdefault(setting.layer, []).append(setting)
        elif setting.layer is not None:
            units.setdefault(setting.unit, []).append(setting)
    single = [[_option(estimates, (setting,)) for setting in unit] for unit in units.values()]
    return single + [[_option(estimates, chosen) for chosen in _caches(estimates, cache)] for cache in caches.values()]


def _caches(estimates: Estimates, settings: Sequence[Setting]) -> Iterable[Chosen]:
    """Every share for every number of heads, those that lose least by it, with and without fewer bits."""
    bits = [(setting,) for setting in settings if setting.head is None]
    keeps: list[Chosen] = [()]
    for share in sorted({s.value for s in settings if s.head is not None}):
        heads = [s for s in settings if s.head is not None and s.value == share]
        heads.sort(key=lambda setting: estimates.losses[setting.name].value)
        keeps += [tuple(heads[:n]) for n in range(1, len(heads) + 1)]
    return (keep + few for keep, few in product(keeps, [(), *bits]) if keep or few)


def _option(estimates: Estimates, chosen: Chosen) -> Option:
    dense, cost = estimates.dense, estimates.summed(chosen)
    saved = 1 - cost.latency_ms / dense.latency_ms, 1 - cost.peak_bytes / dense.peak_bytes
    return Option(chosen, estimates.loss(chosen), saved)


def _start(policy: Policy, option: Option, estimates: Estimates) -> WarmStart:
    return WarmStart(policy, option.chosen, estimates.predicted_loss(option.chosen), estimates.predicted(option.chosen))
