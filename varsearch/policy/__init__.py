"""The policy: what is made cheaper, in which layer, head and scale."""

from varsearch.policy.attention import CrossScale, Reach, SparseAttention
from varsearch.policy.grid import GRID, describe, share_of
from varsearch.policy.kv import KVCompression
from varsearch.policy.policy import LayerPolicy, Policy
from varsearch.policy.scales import ScalePolicy, TokenPruning
from varsearch.policy.weights import LINEARS, Quantization, Weights

__all__ = [
    "GRID",
    "LINEARS",
    "CrossScale",
    "KVCompression",
    "LayerPolicy",
    "Policy",
    "Quantization",
    "Reach",
    "ScalePolicy",
    "SparseAttention",
    "TokenPruning",
    "Weights",
    "describe",
    "share_of",
]
