"""The published way to run M-VAR's mixer, as the slow reference of the one that hands on its state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varsearch.models.mvar import MVAR, MVARBlock


class Rerun(nn.Module):
    """The past of a layer is all its inputs, and the mixer runs over them at each scale."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, u_BLD: Tensor, past: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        rows = len(u_BLD)
        seen_BSD = torch.cat([*(t.repeat(-(-rows // len(t)), 1, 1)[:rows] for t in past), u_BLD], dim=1)
        return self.mixer(seen_BSD)[0][:, -u_BLD.shape[1] :], (seen_BSD,)


def rerunning(model: MVAR) -> MVAR:
    """The model itself, with its mixers replaced."""
    for block in model.layers:
        assert isinstance(block, MVARBlock)
        block.mamba = Rerun(block.mamba)
    return model
