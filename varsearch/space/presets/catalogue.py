"""The published systems: their papers, and the policy fields that each preset sets."""

from __future__ import annotations

from typing import NamedTuple

CALIBRATION = "a calibration (varsearch calibrate)"
SMALLER_MODEL = "a smaller model with the same tokenizer"


class Published(NamedTuple):
    """A preset beside its paper.

    Attributes:
        system: the paper's name for it.
        arxiv: number of the paper on arXiv.
        strength: what differs from the strength of the paper's main results; empty if nothing.
        fields: fields of the policy that differ from dense.
        needs: what a preset takes besides the model's shape; empty if nothing.
    """

    system: str
    arxiv: str
    strength: str
    fields: tuple[str, ...]
    needs: str = ""

    @property
    def paper(self) -> str:
        """The system with its arXiv number."""
        return f"{self.system}, {self.arxiv}"

    @property
    def url(self) -> str:
        """The paper's page."""
        return f"https://arxiv.org/abs/{self.arxiv}"


LITEVAR = (
    "layers[].attention.band",
    "layers[].weights",
    "scales[].guidance",
    "scales[].shared_attention",
)
HACK = ("layers[].kv.attention_budget", "layers[].kv.cache_budget", "layers[].kv.selection")
SCALEKV = ("layers[].kv.cache_budget", "layers[].kv.selection")
FASTVAR = ("scales[].run", "scales[].tokens")
SPARVAR = ("layers[].attention.cross_scale", "layers[].attention.window")

CATALOGUE = {
    "litevar": Published("LiteVAR", "2411.17178", "", LITEVAR, CALIBRATION),
    "litevar-w6": Published("LiteVAR", "2411.17178", "6-bit weights", LITEVAR, CALIBRATION),
    "litevar-85": Published("LiteVAR", "2411.17178", "85 % less attention", LITEVAR, CALIBRATION),
    "fastvar": Published("FastVAR", "2503.23367", "", FASTVAR),
    "fastvar-hart": Published("FastVAR", "2503.23367", "the ratios of HART", ("scales[].tokens",)),
    "hack": Published("HACK", "2504.09261", "", HACK, CALIBRATION),
    "hack-50": Published("HACK", "2504.09261", "50 % less cache", HACK, CALIBRATION),
    "hackpp": Published("HACK++", "2606.08302", "", HACK, CALIBRATION),
    "scalekv": Published("ScaleKV", "2505.19602", "", SCALEKV, CALIBRATION),
    "scalekv-20": Published("ScaleKV", "2505.19602", "20 % of the cache", SCALEKV, CALIBRATION),
    "sparvar": Published("SparVAR", "2602.04361", "", SPARVAR),
    "toprovar": Published("ToProVAR", "2602.22948", "", ("decisions",), CALIBRATION),
    "skipvar": Published("SkipVAR", "2506.08908", "", ("decisions",), CALIBRATION),
    "skipvar-88": Published("SkipVAR", "2506.08908", "similarity 0.88", ("decisions",), CALIBRATION),
    "code": Published("CoDe", "2411.17787", "", ("refiner",), SMALLER_MODEL),
    "code-6": Published("CoDe", "2411.17787", "6 of 10 scales drafted", ("refiner",), SMALLER_MODEL),
}
"""In the order of `registry.PRESETS`, which makes the policies."""
