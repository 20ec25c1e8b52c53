"""Texts as an encoder would see them, written for people: what is pooled in brackets, prompts and the like before."""

from itertools import groupby
from typing import Any

from sentence_transformers.models import Pooling

from turncoder.preview import SHOWN_TOKENS, read_tokens

__all__ = ["mark_pooled", "show_text"]


def show_text(encoder: Any, text: str, prompt: str | None = None) -> str:
    """Write the tokens of a text, prompt, template and special tokens included, as text; what is pooled in brackets.

    A newline is written as backslash and n, and a backslash as two.
    """
    features = encoder.preprocess([text], prompt=prompt)
    if "input_ids" not in features or features["input_ids"].ndim < 2:  # some other module, that cuts texts as it likes
        return text[: 4 * SHOWN_TOKENS]
    ids = features["input_ids"][0].tolist()
    pooled = mark_pooled(encoder, features)
    shown = [
        f"[{part}]" if inside else part
        for inside, group in groupby(range(min(len(ids), SHOWN_TOKENS)), key=pooled.__getitem__)
        for part in [read_tokens([ids[place] for place in group], encoder.tokenizer)]
    ]
    more = len(ids) - SHOWN_TOKENS
    end = f" ... ({more} more tokens{', the last one pooled' if pooled[-1] else ''})" if more > 0 else ""
    return "".join(shown).replace("\\", "\\\\").replace("\n", "\\n") + end


def mark_pooled(encoder: Any, features: dict[str, Any]) -> list[bool]:
    """Say of each token of the one row of ``features`` whether it is pooled."""
    mask = features.get("pooled_BL", features["attention_mask"])[0].bool().tolist()
    pool = next((module for module in encoder if isinstance(module, Pooling)), None)
    if pool is None:
        return mask
    if not pool.include_prompt:
        mask[: int(features.get("prompt_length") or 0)] = [False] * int(features.get("prompt_length") or 0)
    places = [place for place, inside in enumerate(mask) if inside]
    modes = {pool.pooling_mode} if isinstance(pool.pooling_mode, str) else set(pool.pooling_mode)
    if modes <= {"cls", "lasttoken"}:
        kept = {places[0]} if "cls" in modes else set()
        kept |= {places[-1]} if "lasttoken" in modes else set()
        return [place in kept for place in range(len(mask))]
    return mask
