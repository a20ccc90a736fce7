"""The search space: named integer knobs and the policies that their levels stand for. Torch- and Optuna-free."""

from varsearch.space.knobs import SearchSpace

__all__ = ["SearchSpace"]
