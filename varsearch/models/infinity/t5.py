"""The text encoder of the published models, from the optional package `transformers`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varsearch.errors import ModelError

FLAN_T5_XL = "google/flan-t5-xl"


@torch.inference_mode()
def encode(prompts: Sequence[str], model: str = FLAN_T5_XL, length: int = 512, device: str = "cpu") -> list[Tensor]:
    """Features (T_i, C) of each prompt in fp32 without padding, for `save_prompts`; the encoder is freed afterwards.

    Args:
        prompts: texts; word pieces beyond `length` are cut off.
        model: folder or hub name of the encoder.
        length: most word pieces of a prompt.
        device: where the encoder runs, in fp16 as published, or in fp32 on a CPU.

    Raises:
        ModelError: `transformers` is not installed.
    """
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError:
        raise ModelError("encoding prompts needs transformers: pip install 'varsearch[text]'") from None
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
    words = AutoTokenizer.from_pretrained(model, legacy=True)(
        list(prompts), max_length=length, padding=True, truncation=True, return_tensors="pt"
    ).to(device)
    encoder = T5EncoderModel.from_pretrained(model, torch_dtype=dtype).to(device).eval()
    features_NTC = encoder(input_ids=words.input_ids, attention_mask=words.attention_mask).last_hidden_state
    lengths = words.attention_mask.sum(1).tolist()
    return [f_TC[:n].float().cpu() for f_TC, n in zip(features_NTC, lengths, strict=True)]
