"""M-VAR (Ren et al. 2024, arXiv 2411.10433): attention within a scale, Mamba-2 between scales.

Each scale attends to itself alone, and a recurrence runs over the tokens of all scales in raster order. The published
code reruns it over all earlier scales at each step; here a layer hands its state from scale to scale, with equal
results. Everything else is VAR's. State-dict keys are those of the published checkpoints; shape suffixes are those of
`var.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.models.layers import Modulation, Place
from varsearch.models.mamba import Mamba2, MambaConfig
from varsearch.models.seams import AttentionMemory, KVView, LayerPlan, LayerState
from varsearch.models.var import VAR, Block, VARConfig


@dataclass(frozen=True, slots=True)
class MVARConfig(VARConfig):
    """Hyper-parameters of an `MVAR`."""

    mamba: MambaConfig = field(default_factory=MambaConfig)

    def __post_init__(self) -> None:
        VARConfig.__post_init__(self)
        if self.shared_adaln:
            raise ValueError("M-VAR has no shared AdaLN")
        inner = self.mamba.expand * self.width
        if inner % self.mamba.head_dim:
            raise ValueError(f"heads of {self.mamba.head_dim} channels do not divide an inner width of {inner}")
        if any(height != width for height, width in self.scales):
            raise ValueError("the maps of M-VAR are square")


class MVARBlock(Block):
    """A block with a state-space branch between attention and the feed-forward network."""

    branches = 3

    def __init__(self, c: MVARConfig) -> None:
        super().__init__(c)
        self.mamba = Mamba2(c.width, c.mamba)
        # Read by nobody; carried so that the state dict has the published layout.
        sides = torch.tensor([side for side, _ in c.scales], dtype=torch.int32)
        self.attn.register_buffer("patch_nums", sides)

    @property
    def linears(self) -> dict[str, Place]:
        return super().linears | {"ssm_in": (self.mamba, "in_proj"), "ssm_out": (self.mamba, "out_proj")}

    def run_ssm(self, x_BLD: Tensor, mod: Modulation, pos_BL: Tensor, plan: LayerPlan, state: LayerState) -> Tensor:
        """The stream after the state-space branch."""

        def ssm(x_BLD: Tensor, pos_BL: Tensor) -> Tensor:
            y_BLD, state.recurrence = self.mamba(self.normed(x_BLD, mod, 1), state.recurrence)
            gated_BLD: Tensor = y_BLD * mod.gates[1][: len(y_BLD)]
            return gated_BLD

        return x_BLD + plan.between(ssm, x_BLD, pos_BL, state.between, state.n_images)

    def forward(self, x_BLD: Tensor, mod: Modulation, pos_BL: Tensor, plan: LayerPlan, state: LayerState) -> Tensor:
        # No later scale attends to this one, so nothing is stored, whatever the plan has room for.
        x_BLD = self.run_attention(x_BLD, mod, pos_BL, replace(plan, room=0), state)
        x_BLD = self.run_ssm(x_BLD, mod, pos_BL, plan, state)
        return self.run_ffn(x_BLD, mod, pos_BL, plan, state)


class MVAR(VAR):
    """Predicts the tokens of every scale from the class and from the coarser scales."""

    config: MVARConfig

    def __init__(self, config: MVARConfig) -> None:
        super().__init__(config)

    def new_block(self) -> MVARBlock:
        return MVARBlock(self.config)

    def attend_all(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        """Attention of all scales at once: each scale sees itself."""
        tokens = [height * width for height, width in self.config.scales]
        parts = (t.split(tokens, dim=2) for t in (q_BHLC, views[0].k_BHSC, views[0].v_BHSC))
        return torch.cat(
            [F.scaled_dot_product_attention(q, k, v, scale=1.0) for q, k, v in zip(*parts, strict=True)], dim=2
        )
