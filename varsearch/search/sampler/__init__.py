"""Proposes the next policy."""
