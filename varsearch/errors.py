"""Every error that varsearch raises on purpose, each with the exit code of its kind.

The command line prints the message as one line and leaves with `exit_code`; the numbers are stable. A reader of its
output that leaves early, as `head` does, is no error: the command goes on, and ends with the code it would have anyway.
"""

from __future__ import annotations


class VarsearchError(Exception):
    """Base of all deliberate errors. The message says what was got, what was expected and how to fix it."""

    exit_code = 1


class UsageError(VarsearchError):
    """An argument has no meaning: budget 0, an unknown metric, bounds that nothing can satisfy."""

    exit_code = 2


class PolicyError(VarsearchError):
    """A policy or policy file is malformed, inconsistent, or belongs to another model."""

    exit_code = 3


class ModelError(VarsearchError):
    """A model is unknown, or its weights are missing, truncated, tampered with or of another layout."""

    exit_code = 4


class TargetError(VarsearchError):
    """A target is unknown, or this machine cannot do what the target asks for."""

    exit_code = 5


class StoreError(VarsearchError):
    """The database cannot be reached, read, written or understood."""

    exit_code = 6


class EvaluationError(VarsearchError):
    """An evaluation gave no usable number, or re-measuring did not reproduce one."""

    exit_code = 7


class OutputError(VarsearchError):
    """A file could not be written (disk full, no permission); nothing half-written was left."""

    exit_code = 8


class Interrupted(VarsearchError):
    """The user pressed Ctrl-C; everything measured so far is stored."""

    exit_code = 130
