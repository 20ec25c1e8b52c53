"""Several documents in one row, without one seeing another: masks that are proven before they are used.

A mask of four axes that is given to transformers is used as it is, and deletes the model's own windows. So there is
one mask per type of layer, with the document and the window in it; what each type of layer reaches is read off the
small twin, and whether the masks do what they must is shown on it.

B rows of a batch, L positions.
"""

import dataclasses
import itertools
import weakref
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from turncoder.model.conversion import convert, is_converted
from turncoder.model.influence import backbone_of, run_model, test_tokens
from turncoder.model.memory import remember
from turncoder.model.proof import EXACT, HALF_EXACT, LENGTH, build_small, describe_error, differ, prove, window_of

__all__ = ["can_isolate", "choose_masks", "isolation_mask"]

PADDING = -1


@dataclasses.dataclass(frozen=True)
class Plan:
    """How documents are isolated in an architecture."""

    reaches: dict[str, list[int | None]]
    """By layer type: positions that it reaches back and ahead, less the model's window; None without a limit."""
    causal: bool
    per_type: bool
    """Whether the forward takes a dictionary of masks by layer type."""
    positions: bool
    """Whether the forward takes positions that restart with each document."""


plans: weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, Plan | str]] = weakref.WeakKeyDictionary()


def can_isolate(model: PreTrainedModel) -> bool | str:
    """Return True if documents that share a row can be kept apart in this model, else the reason why not.

    Proven on the small twin, and remembered: a document alone gives the states that it gives in a packed row; tokens
    of one document, and padding, move no state of another; windows reach as far as the model's own do. It holds for
    the direction, causal or bidirectional, and the attention implementation that the model has now.
    """
    plan = find_plan(model)
    return plan if isinstance(plan, str) else True


def choose_masks(model: PreTrainedModel, batch: dict[str, torch.Tensor], *, isolate: bool) -> dict[str, Any]:
    """Return the masks with which a model reads a batch: none without padding; documents apart where that is asked.

    Parameters
    ----------
    model
        As for `isolation_mask`.
    batch
        Its ``attention_mask`` and ``document_ids``, [B, L].
    isolate
        Whether documents that share a row must not see each other.
    """
    mask_BL, documents_BL = batch["attention_mask"], batch["document_ids"]
    if isolate and bool((documents_BL > 0).any()):
        return isolation_mask(model, documents_BL, next(model.parameters()).dtype)
    return {"attention_mask": None if bool(mask_BL.all()) else mask_BL}


def isolation_mask(model: PreTrainedModel, document_ids_BL: torch.Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Return what the forward of the backbone takes to keep the documents of each row apart.

    Parameters
    ----------
    model
        The model, for which `can_isolate` is True.
    document_ids_BL
        The document of each position, [B, L]; -1 on padding. The positions of a document lie together.
    dtype
        Of the hidden states; additive masks get it.

    Returns
    -------
    dict
        ``attention_mask``: [B, 1, L, L], or such masks by layer type; ``position_ids`` [B, L], each document from 0.

    Raises
    ------
    ValueError
        The architecture cannot isolate documents.
    """
    plan = find_plan(model)
    if isinstance(plan, str):
        raise ValueError(f"{type(backbone_of(model)).__name__} cannot isolate documents: {plan}")
    return build_masks(plan, backbone_of(model).config, document_ids_BL, dtype)


def find_plan(model: PreTrainedModel) -> Plan | str:
    """Return the plan for a model as it is now, from the caches if it is there; or why there is none."""
    backbone = backbone_of(model)
    state = (is_converted(backbone.config), backbone.config._attn_implementation, window_of(backbone.config))
    known = plans.setdefault(backbone, {})
    if state not in known:
        kept = remember(backbone, "isolation" + ("-open" if state[0] else ""), lambda: make_plan(backbone))
        known[state] = kept if isinstance(kept, str) else Plan(**kept)
    return known[state]


def make_plan(backbone: PreTrainedModel) -> dict[str, Any] | str:
    """Try the ways to hand over masks on the twin, and return the first that is proven, or the reason of the last."""
    if backbone.config._attn_implementation not in ("eager", "sdpa"):
        return f"{backbone.config._attn_implementation} takes no mask of this kind"
    proof = prove(backbone)
    if proof.error:
        return proof.error
    small = build_small(backbone)
    opened = is_converted(backbone.config) or proof.before == "bidirectional"
    if is_converted(backbone.config):
        convert(small, proof.repairs)
    reaches: dict[str, list[int | None]] = {}
    for layer in proof.layers:
        if opened:
            reaches[layer.kind] = [less(layer.back, proof.window), less(layer.ahead, proof.window)]
        else:
            reaches[layer.kind] = [less(layer.back_before, proof.window_before), None]
    several = len({tuple(reach) for reach in reaches.values()}) > 1
    reason = "its layers mix tokens in no way that a mask rules"
    for per_type, positions in itertools.product((True, False) if several else (False, True), (True, False)):
        plan = Plan(reaches, causal=not opened, per_type=per_type, positions=positions)
        try:
            fault = find_fault(small, plan)
        except Exception as error:  # whatever a class raises is the finding
            fault = f"it takes no mask of four axes ({describe_error(error)})"
        if not fault:
            return dataclasses.asdict(plan)
        reason = fault if per_type == several and positions else reason
    return reason


def less(reach: int, window: int | None) -> int | None:
    """Return by how much a reach differs from the window; None if it is as long as the text."""
    return None if reach >= LENGTH - 1 or window is None else reach - window


def find_fault(small: PreTrainedModel, plan: Plan) -> str:
    """Return what the masks do wrong on a twin; empty if nothing."""
    lengths = [9, 8, 3]
    documents_1L = torch.tensor([[number for number, size in enumerate(lengths) for _ in range(size)]])
    documents_1L = torch.nn.functional.pad(documents_1L, (0, LENGTH - documents_1L.shape[1]), value=PADDING)
    ids_1L = test_tokens(small, LENGTH)
    documents_BL = torch.cat((documents_1L, torch.zeros_like(documents_1L))).to(ids_1L.device)
    masks = build_masks(plan, small.config, documents_BL, small.dtype)
    ids_BL = ids_1L.repeat(2, 1)
    packed = run_model(small, ids_BL, **masks)
    exact = EXACT if packed.dtype == torch.float32 else HALF_EXACT
    if differ(packed[1], run_model(small, ids_1L)[0]) > exact:
        return "a row with one document comes out differently"
    start = 0
    for number, size in enumerate(lengths):
        inside = slice(start, start + size)
        if differ(packed[0, inside], run_model(small, ids_1L[:, inside])[0]) > exact:
            return "a document comes out differently in a packed row than alone"
        other_BL = ids_BL.clone()
        other_BL[0] = torch.where(documents_BL[0] == number, ids_BL[0], ids_BL[0].roll(LENGTH // 2))
        if differ(run_model(small, other_BL, **masks)[0, inside], packed[0, inside]) > exact:
            return "the tokens of one document move another"
        start += size
    return ""


def build_masks(
    plan: Plan, config: PreTrainedConfig, document_ids_BL: torch.Tensor, dtype: torch.dtype
) -> dict[str, Any]:
    """Build the masks of a plan for a batch."""
    length = document_ids_BL.shape[1]
    index_L = torch.arange(length, device=document_ids_BL.device)
    starts_BL = torch.zeros_like(document_ids_BL)
    starts_BL[:, 1:] = torch.where(document_ids_BL[:, 1:] != document_ids_BL[:, :-1], index_L[1:], 0)
    positions_BL = index_L - starts_BL.cummax(1).values
    same_BLL = document_ids_BL[:, :, None] == document_ids_BL[:, None, :]
    ahead_LL = index_L[None, :] - index_L[:, None]
    if plan.causal:
        same_BLL = same_BLL & (ahead_LL <= 0)
    window = window_of(config)
    masks: dict[str, torch.Tensor] = {}
    for kind, (back, ahead) in plan.reaches.items():
        seen_BLL = same_BLL
        if "chunk" in kind and window:
            chunk_BL = positions_BL // window
            seen_BLL = seen_BLL & (chunk_BL[:, :, None] == chunk_BL[:, None, :])
        elif window:
            if back is not None:
                seen_BLL = seen_BLL & (ahead_LL >= -(window + back))
            if ahead is not None:
                seen_BLL = seen_BLL & (ahead_LL <= window + ahead)
        masks[kind] = seen_BLL[:, None]
        if config._attn_implementation == "eager":
            blocked = torch.finfo(dtype).min
            masks[kind] = torch.zeros_like(masks[kind], dtype=dtype).masked_fill(~masks[kind], blocked)
    mask = masks if plan.per_type else next(iter(masks.values()))
    return {"attention_mask": mask} | ({"position_ids": positions_BL} if plan.positions else {})
