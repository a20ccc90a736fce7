"""Tells whoever starts a search how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from varsearch.evaluators.calibrate import Step as CalibrationStep
from varsearch.policy import Policy
from varsearch.search.run.events import Event, Status
from varsearch.search.sensitivity.profile import Step
from varsearch.search.setup.transfer import Transfer

if TYPE_CHECKING:
    from varsearch.search.setup.prepare import Problem


class Listener:
    """Is called in the order of these methods. Each does nothing: override those of interest."""

    def on_calibration(self) -> None:
        """A calibration pass begins; it takes seconds to minutes, once per database."""

    def on_calibration_step(self, step: CalibrationStep) -> None:
        """One batch of the calibration is done."""

    def on_no_profile(self, reason: str) -> None:
        """The model cannot have a sensitivity profile."""

    def on_profile(self) -> None:
        """A sensitivity profile is made; it takes minutes, once per database."""

    def on_profile_step(self, step: Step) -> None:
        """One measurement of the profile is made."""

    def on_start(self, run: str, problem: Problem, design: Mapping[str, Policy], known: Transfer) -> None:
        """The search begins.

        Args:
            run: name of the run.
            problem: settings, space and resources.
            design: policies that are tried first, by origin.
            known: what other runs of the database know.
        """

    def on_event(self, event: Event) -> None:
        """A trial has its outcome, or a finalist was evaluated again."""

    def on_end(self, status: Status) -> None:
        """The search has ended."""
