"""Policies to start a search from: by a profile, they save much for little loss.

Prices from low to high, on latency, on memory and on both, give a path from mild to strong
policies; see `lagrangian` for the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from varsearch.policy import Policy
from varsearch.profile import Cost, Profile
from varsearch.search.core.pareto import Array
from varsearch.search.sensitivity.additive_model import AdditiveModel
from varsearch.search.sensitivity.decomposition import Chosen, compose
from varsearch.search.sensitivity.lagrangian import Option, TradeOffs, trade_offs


@dataclass(frozen=True, slots=True)
class WarmStartConfig:
    """Tuning constants of warm starts."""

    # Shares of a price for latency and memory, each as a share of dense's. Neither is free: the
    # smallest policies would take several times as long for their last bytes.
    weights: tuple[tuple[float, float], ...] = ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))
    # Lowest and highest loss that may be paid for everything that dense costs.
    prices: tuple[float, float] = (1e-4, 1e3)
    # Prices between them, evenly by their logarithms.
    n_prices: int = 141
    # Largest predicted loss, about a ΔFID: stronger policies are broken.
    max_loss: float = 2.0


DEFAULTS = WarmStartConfig()


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A policy with its predicted loss, and its predicted cost on the profile's target."""

    policy: Policy
    chosen: Chosen
    loss: float
    cost: Cost


def warm_starts(
    profile: Profile, n: int = 24, config: WarmStartConfig = DEFAULTS
) -> list[WarmStart]:
    """At most `n` different policies from mild to strong, without dense.

    They depend on the arguments alone. Each weight of latency against memory gives about equally
    many, evenly spread over their savings.
    """
    model = AdditiveModel(profile)
    choices = trade_offs(model)
    paths = []
    for weights in config.weights:
        mild = []
        for option in path(choices, weights, config):
            if 0 < model.predicted_loss(option.chosen) <= config.max_loss:
                mild.append(option)
        paths.append(mild)
    # Weights that give few leave their share to the next ones.
    starts: dict[str, WarmStart] = {}
    for i, (weights, options) in enumerate(zip(config.weights, paths, strict=True)):
        share = (n - len(starts)) // (len(paths) - i)
        for option in spread(options, weights, share):
            policy, chosen = compose(profile.spec, option.chosen), option.chosen
            loss, cost = model.predicted_loss(chosen), model.predicted(chosen)
            starts.setdefault(policy.digest, WarmStart(policy, chosen, loss, cost))
    return sorted(starts.values(), key=lambda start: start.loss)


def path(
    choices: TradeOffs, weights: tuple[float, float], config: WarmStartConfig = DEFAULTS
) -> list[Option]:
    """The best options for prices from low to high, divided by `weights`; each once."""
    prices = np.geomspace(*config.prices, config.n_prices).tolist()
    found = map(choices.option, choices.best(prices, np.array(weights)))
    return list(dict.fromkeys(found))


def spread(options: Sequence[Option], weights: tuple[float, float], n: int) -> list[Option]:
    """At most `n` options, about evenly spread over their savings, the strongest among them."""
    if len(options) <= n:
        return list(options)
    saved: Array = np.array([np.dot(weights, option.saved) for option in options])
    nearest = []
    for level in saved.max() * np.linspace(0, 1, n + 1)[1:]:
        nearest.append(int(np.abs(saved - level).argmin()))
    return [options[i] for i in dict.fromkeys(nearest)]
