"""Policies as settings, and as Optuna sees them. Torch- and Optuna-free."""

from varsearch.space.optuna_view import SearchSpace

__all__ = ["SearchSpace"]
