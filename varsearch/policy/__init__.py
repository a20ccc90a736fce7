"""The policy: what is made cheaper, in which layer, head and scale."""

from varsearch.policy.attention import CrossScale, Reach, SparseAttention
from varsearch.policy.decision import Action, Decision, largest_remainder
from varsearch.policy.grid import GRID, describe, share_of
from varsearch.policy.kv import KVCompression, Selection
from varsearch.policy.policy import LayerPolicy, Policy, without
from varsearch.policy.refiner import Refiner
from varsearch.policy.scales import ScalePolicy, TokenPruning
from varsearch.policy.weights import LINEARS, Quantization, Weights

__all__ = [
    "GRID",
    "LINEARS",
    "Action",
    "CrossScale",
    "Decision",
    "KVCompression",
    "LayerPolicy",
    "Policy",
    "Quantization",
    "Reach",
    "Refiner",
    "ScalePolicy",
    "Selection",
    "SparseAttention",
    "TokenPruning",
    "Weights",
    "describe",
    "largest_remainder",
    "share_of",
    "without",
]
