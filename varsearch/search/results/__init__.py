"""Reads what a run found."""
