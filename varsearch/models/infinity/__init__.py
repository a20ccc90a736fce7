"""Infinity: text-conditional, with bitwise tokens (Han et al. 2024, arXiv 2412.04431)."""

from varsearch.models.infinity.sizes import SIZES, configs
from varsearch.models.infinity.text import Prompts, load_prompts, save_prompts
from varsearch.models.infinity.tokenizer import BitTokenizer, BitTokenizerConfig
from varsearch.models.infinity.transformer import Infinity, InfinityConfig

__all__ = [
    "SIZES",
    "BitTokenizer",
    "BitTokenizerConfig",
    "Infinity",
    "InfinityConfig",
    "Prompts",
    "configs",
    "load_prompts",
    "save_prompts",
]
