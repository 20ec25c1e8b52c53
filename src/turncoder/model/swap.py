"""Another vocabulary for a model: its body stays, embeddings and head are made anew from the rows that it has.

Gee et al. 2022, Fast Vocabulary Transfer for Language Model Compression (EMNLP industry track): a token that both
vocabularies have keeps its row, another gets the mean of the rows of the old tokens that its text falls into. Special
tokens are matched by their role.

Legend: V old tokens, W new tokens, D width.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turncoder.data.tokenizer import find_padding, pad_token_id
from turncoder.errors import UserError
from turncoder.model.backbone import count_embeddings

__all__ = ["match_tokens", "swap_vocabulary"]

logger = logging.getLogger("turncoder")

ROLES = ("bos", "eos", "unk", "mask", "cls", "sep", "pad")  # of a token that has several the first counts
BROKEN = "�"  # of bytes that are no character by themselves
BEFORE = "a"  # stands before a text that begins with a space, which some tokenizers take away


def swap_vocabulary(
    model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Give a language model the vocabulary of another tokenizer, in place, and say how much of the old is kept.

    Parameters
    ----------
    model
        With its head, tied or not; a bias of the head is treated as a column more.
    old, new
        The tokenizer that the model knows, and the one that it shall.

    Returns
    -------
    PreTrainedModel
        The same, with vocabulary size and special token ids of the new tokenizer in its configs.

    Raises
    ------
    UserError
        The model counts positions from its padding token, and the new one's id lies beyond them.
    """
    parts = match_tokens(old, new, count_embeddings(model))
    inputs: Any = model.get_input_embeddings()
    output: Any = model.get_output_embeddings()
    tied = output is not None and output.weight is inputs.weight
    kept = {"inputs": inputs.weight.detach().clone()}
    if output is not None and not tied:
        kept["output"] = output.weight.detach().clone()
    if getattr(output, "bias", None) is not None:
        kept["bias"] = output.bias.detach().clone()
    model.resize_token_embeddings(len(parts), mean_resizing=False)
    inputs, output = model.get_input_embeddings(), model.get_output_embeddings()
    if "output" in kept and "bias" in kept:  # BERT's is the same parameter as one beside it, and is saved once
        output.bias = nn.Parameter(output.bias.detach().clone())
    places = {"inputs": inputs.weight, "output": getattr(output, "weight", None), "bias": getattr(output, "bias", None)}
    with torch.no_grad():
        for name, old_VD in kept.items():
            places[name].copy_(_mix(old_VD, parts))
    _set_roles(model, new)
    _tell(parts, old, new)
    return model


def match_tokens(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, size: int) -> list[list[int]]:
    """List for each new id the old ids whose rows stand for it: one, several, or none.

    Parameters
    ----------
    old, new
        The two tokenizers.
    size
        Old ids from here on have no row.
    """
    names, read_old, read_new = old.get_vocab(), _read_texts(old), _read_texts(new)
    special, strangers = set(old.all_special_ids), set(new.all_special_ids)
    texts = {text: place for place, text in sorted(read_old.items(), reverse=True) if place not in special}
    roles: dict[Any, Any] = {
        getattr(new, f"{role}_token_id", None): getattr(old, f"{role}_token_id", None) for role in reversed(ROLES)
    }
    parts: list[list[int]] = [[] for _ in range(max(read_new) + 1)]
    missing: dict[int, str] = {}
    for token, place in new.get_vocab().items():
        text, same = read_new[place], names.get(token)
        if place in strangers and roles.get(place) is not None:
            parts[place] = [roles[place]]
        elif same is not None and (place in strangers or read_old[same] == text):
            parts[place] = [same]
        elif place in strangers or not text or BROKEN in text:
            continue
        elif text in texts:
            parts[place] = [texts[text]]
        else:
            missing[place] = text
    for place, ids in zip(missing, _split([*missing.values()], old), strict=True):
        parts[place] = [one for one in ids if one != old.unk_token_id]
    return [[one for one in ids if one < size] for ids in parts]


def _read_texts(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Read the text of every token, with the space that it begins with: after another token, which is cut off."""
    first = tokenizer(BEFORE, add_special_tokens=False)["input_ids"]
    places = sorted(tokenizer.get_vocab().values())
    whole = tokenizer.batch_decode([[*first, place] for place in places], clean_up_tokenization_spaces=False)
    start = len(tokenizer.decode(first, clean_up_tokenization_spaces=False))
    return {place: text[start:] for place, text in zip(places, whole, strict=True)}


def _split(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Split texts into tokens; the space that one begins with stays."""
    if not texts:
        return []
    first = tokenizer(BEFORE, add_special_tokens=False)["input_ids"]
    spaced = tokenizer([BEFORE + text for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    bare = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [
        with_space[len(first) :] if text[0] == " " and with_space[: len(first)] == first else ids
        for text, with_space, ids in zip(texts, spaced, bare, strict=True)
    ]


def _mix(old_VD: Tensor, parts: list[list[int]]) -> Tensor:
    """Make new rows: the mean of the old ones that stand for them, or of all where none does; new_WD, or of biases."""
    mean = old_VD.float().mean(0, keepdim=True)
    source_VD = torch.cat([old_VD.float(), mean]).reshape(len(old_VD) + 1, -1)
    offsets = torch.tensor([0, *(max(len(ids), 1) for ids in parts)]).cumsum(0)[:-1]
    flat = torch.tensor([one for ids in parts for one in (ids or [len(old_VD)])])
    new_WD = nn.functional.embedding_bag(flat, source_VD, offsets, mode="mean")
    return new_WD.reshape(len(parts), *old_VD.shape[1:]).to(old_VD.dtype)


def _set_roles(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the ids of the special tokens where the model looks for them."""
    ids: dict[str, Any] = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    pad_id = pad_token_id(tokenizer)
    places: list[Any] = [model.config, model.config.get_text_config(decoder=True)]
    if getattr(model, "generation_config", None) is not None:
        places.append(model.generation_config)
    for role, place in ids.items():
        for config in places:
            named = getattr(config, f"{role}_token_id", None) is not None
            if named or (place is not None and role in ("bos", "eos", "pad")):
                setattr(config, f"{role}_token_id", pad_id if role == "pad" else place)
    inputs: Any = model.get_input_embeddings()
    inputs.padding_idx = find_padding(tokenizer)  # the row of any other token has to train
    for module in model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
            _move_positions(positions, positions.padding_idx, pad_id)
            module.padding_idx = pad_id  # type: ignore[assignment]


@torch.no_grad()
def _move_positions(positions: nn.Embedding, before: int, after: int) -> None:
    """Move position embeddings that are counted from behind the id of the padding token, as RoBERTa's are."""
    count = len(positions.weight)
    if after + 2 > count - 1:
        raise UserError(
            f"swap_vocabulary: the model counts its {count} positions from the id of the padding token, which the new "
            f"tokenizer has at {after}; give it one of the first ids"
        )
    if after > before:
        logger.warning("swap_vocabulary: the model has %d positions fewer than before", after - before)
    moved = positions.weight.clone()
    used = min(count - before - 1, count - after - 1)
    moved[after + 1 : after + 1 + used] = positions.weight[before + 1 : before + 1 + used]
    positions.weight.copy_(moved)
    positions.padding_idx = after


def _tell(parts: list[list[int]], old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> None:
    counts = [sum(map(check, parts)) for check in (lambda ids: len(ids) == 1, lambda ids: len(ids) > 1)]
    logger.info(
        "swap_vocabulary: of %s new tokens %s keep a row of the %s old ones, %s get the mean of their parts, %s of all",
        *(f"{count:,}" for count in (len(parts), counts[0], len(old), counts[1], len(parts) - sum(counts))),
    )  # fmt: skip
