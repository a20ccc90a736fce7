"""Runs a search: evaluations, workers, Optuna's view, the end."""
