"""The families of models that one loop runs: which networks a configuration stands for.

A family is a pair of a transformer and a tokenizer. All transformers have `condition`, `embed`, `layers` and `logits`,
all tokenizers `quantize` and `decode`, as the loop calls them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Discriminator, Tag
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.infinity.text import Prompts
from varsearch.models.infinity.tokenizer import BitTokenizer, BitTokenizerConfig
from varsearch.models.infinity.transformer import Block as TextBlock
from varsearch.models.infinity.transformer import BlockCondition, Infinity, InfinityConfig
from varsearch.models.layers import Modulation
from varsearch.models.mvar import MVAR, MVARConfig
from varsearch.models.var import VAR, VARConfig
from varsearch.models.var import Block as ClassBlock
from varsearch.models.vqvae import VQVAE, TokenizerConfig
from varsearch.target import Family

Transformer = VAR | Infinity
Tokenizer = VQVAE | BitTokenizer
Block = ClassBlock | TextBlock
Asked = Tensor | Prompts
"""What images are asked for: their classes (N,) int64, or a prompt each."""
TransformerConfig = VARConfig | MVARConfig | InfinityConfig


def _has(config: Any, field: str) -> bool:
    return field in config if isinstance(config, dict) else hasattr(config, field)


def family_of(config: Any) -> Family:
    """The family of a transformer's configuration, made or still as JSON: each has a field that the others lack."""
    return "mvar" if _has(config, "mamba") else "infinity" if _has(config, "grid") else "var"


AnyTransformerConfig = Annotated[
    Annotated[VARConfig, Tag("var")] | Annotated[MVARConfig, Tag("mvar")] | Annotated[InfinityConfig, Tag("infinity")],
    Discriminator(family_of),
]
AnyTokenizerConfig = Annotated[
    Annotated[TokenizerConfig, Tag("vq")] | Annotated[BitTokenizerConfig, Tag("bits")],
    Discriminator(lambda config: "bits" if _has(config, "patch") else "vq"),
]


def condition(model: Transformer, asked: Asked, guided: bool) -> tuple[Tensor, Sequence[Modulation | BlockCondition]]:
    """What was asked for as a vector per row (B, D), and what each block reads beside its tokens."""
    if isinstance(model, Infinity) and isinstance(asked, Prompts):
        return model.condition(asked, guided)
    if isinstance(model, VAR) and isinstance(asked, Tensor):
        return model.condition(asked, guided)
    raise ModelError(f"{type(model).__name__} cannot be asked for {type(asked).__name__}")


def blocks_of(model: Transformer) -> list[Block]:
    """The blocks in order."""
    return [*model.layers]


def new_transformer(config: TransformerConfig) -> Transformer:
    """A network without meaningful weights."""
    if isinstance(config, InfinityConfig):
        return Infinity(config)
    return MVAR(config) if isinstance(config, MVARConfig) else VAR(config)


def new_tokenizer(config: TokenizerConfig | BitTokenizerConfig) -> Tokenizer:
    """A network without meaningful weights."""
    return BitTokenizer(config) if isinstance(config, BitTokenizerConfig) else VQVAE(config)
