"""Make a decoder's attention look both ways, in place, and prove it layer by layer.

Nothing is trained or encoded before this says so. Two things are looked at: the model with its own weights, on a few
tokens, at every load; and its small twin (`turncoder.model.proof`), once, for what takes longer texts to see.

In the names of tensors: B rows of a batch, L positions, D width.
"""

import dataclasses
import logging
import time
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from turncoder.errors import ConversionError
from turncoder.model.conversion import REPAIRS, convert, is_converted, key_of
from turncoder.model.influence import (
    CONTROL,
    backbone_of,
    decoder_layers,
    perturbed,
    run_model,
    test_tokens,
    what_moved,
)
from turncoder.model.proof import (
    EXACT,
    HALF_EXACT,
    LENGTH,
    Proof,
    build_small,
    describe_error,
    differ,
    layer_kinds,
    measure,
    prove,
    window_of,
)
from turncoder.model.views import AttentionReport, LayerView, describe_faults

__all__ = [
    "AttentionReport",
    "LayerView",
    "attention_map",
    "check_attention",
    "inspect_attention",
    "make_bidirectional",
    "reopens",
    "settle_implementation",
]

logger = logging.getLogger("turncoder")

# Four rows of so many tokens: not four, for axes are told apart by their sizes, and 16 or more in all, for below that
# a CPU's kernels are slower (0.66 s for 12 against 0.55 s for 16 to 25, 1.3B parameters in fp32).
TOKENS, PADS = 5, 1
LOOKS = 9  # texts that a layer may need to show where it looks
NAMES = {
    "flags": "module.is_causal = False",
    "buffers": "causal buffers mirrored",
    "masks": "mask factories wrapped",
}


def make_bidirectional(model: PreTrainedModel, *, allow_partial: bool = False) -> AttentionReport:
    """Switch a decoder to bidirectional attention, in place, and prove that every layer looks both ways.

    ``config.is_causal = False`` does it for most (Gemma 3 and 4 have a key of their own, which halves their window);
    the few repairs that some classes need are found on the twin.

    Parameters
    ----------
    model
        A decoder, with or without its head, in the attention implementation that it is going to run in.
    allow_partial
        Accept a model of which only some layers can look ahead.

    Returns
    -------
    AttentionReport
        What was found, layer by layer, and what was done.

    Raises
    ------
    ConversionError
        Layers stay causal, or padding leaks; the message names the layers and the remedy.
    """
    proof = prove(model)
    convert(model, REPAIRS if proof.error else proof.repairs)
    return check_attention(model, allow_partial=allow_partial)


def settle_implementation(model: PreTrainedModel, *, allow_partial: bool = False) -> None:
    """See that a model can become bidirectional, before anything is spent on it; it is not converted yet.

    An attention implementation whose twin does not pass gives way to the first of sdpa and eager that does, with a
    notice.

    Raises
    ------
    ConversionError
        No implementation passes; the message names the layers.
    """
    proof, backbone = prove(model), backbone_of(model)
    if proof.error or (proof.converted and proof.right_padding):
        return
    if other := other_implementation(model):
        asked = backbone.config._attn_implementation
        logger.warning("attn_implementation: %s does not pass the proof with this model; %s is used", asked, other)
        backbone.set_attn_implementation(other)
    elif not allow_partial:
        make_bidirectional(model)  # raises, with the names of its layers


def check_attention(model: PreTrainedModel, *, allow_partial: bool = False) -> AttentionReport:
    """Prove that a model is bidirectional as it stands, without changing it.

    Raises
    ------
    ConversionError
        It is not; the message names the layers and the remedy.
    """
    report = inspect_attention(model)
    if report.verdict == "partial" and allow_partial:
        logger.warning("%s: %s", report.architecture, report.reason)
    elif report.verdict != "bidirectional":
        where = f"{report.architecture} ({report.implementation})"
        raise ConversionError(f"{where}: {report.reason}; remedy: {report.remedy}")
    return report


def inspect_attention(model: PreTrainedModel) -> AttentionReport:
    """Report on a model as it stands, whatever the verdict is: its own weights and its twin put together."""
    started = time.perf_counter()
    backbone, proof = backbone_of(model), prove(model)
    if proof.error:
        logger.warning(
            "%s has no small twin (%s): the proof runs on the model itself", type(backbone).__name__, proof.error
        )
        try:
            proof = dataclasses.replace(measure(backbone), before="causal", reopens="fails")
        except Exception as error:
            reason = f"it does not run on token ids alone ({describe_error(error)})"
            raise ConversionError(f"{type(backbone).__name__}: {reason}; remedy: none exists") from error
    views, whole, padding = look(model, proof)
    verdict, reason, remedy = find_fault(views, proof, whole=whole, padding=padding and proof.right_padding)
    if verdict != "bidirectional":
        if proof.converted and proof.right_padding:
            remedy = "turncoder.make_bidirectional(model)"
        elif other := other_implementation(model):
            remedy = f"--attn_implementation {other}"
    how = () if proof.before == "bidirectional" else (key_of(backbone.config), *(NAMES[one] for one in proof.repairs))
    return AttentionReport(
        architecture=type(backbone).__name__,
        model_type=backbone.config.model_type,
        implementation=str(backbone.config._attn_implementation),
        verdict=verdict,
        reason=reason,
        remedy=remedy,
        how=() if verdict in ("causal", "padding leaks") else how,
        left_padding=proof.left_padding,
        reopens=proof.reopens,
        layers=tuple(views),
        seconds=round(time.perf_counter() - started, 3),
    )


def attention_map(model: PreTrainedModel) -> list[LayerView]:
    """Measure what each layer of a model, as it stands, sees.

    Parameters
    ----------
    model
        A decoder, with or without its head; it is not changed.

    Returns
    -------
    list of LayerView
        One per layer that mixes tokens: ``index``, ``name``, ``looks_ahead``, ``looks_back``, ``window``.
    """
    return look(model, prove(model))[0]


def reopens(model: PreTrainedModel) -> str:
    """Return how plain `AutoModel` would open a saved copy: "bidirectional", "causal", "disagrees" or "fails".

    It "disagrees" where texts with and without padding, or short and long ones, get different attention.
    """
    return prove(model).reopens


def look(model: PreTrainedModel, proof: Proof) -> tuple[list[LayerView], bool, bool]:
    """Look at a model with its own weights: its layers, whether the whole sees ahead, whether padding is exact.

    Once is enough for most. A layer whose softmax is so sharp that one text does not show where it looks is looked at
    with others, provided that the model is converted and the twin says that all layers look both ways then.
    """
    backbone = backbone_of(model)
    layers = decoder_layers(backbone)
    ahead, back, whole, leaks = [set[str](), set[str]()], set[str](), [False, False], False
    looks = LOOKS if proof.converted and is_converted(backbone.config) else 1
    for look_number in range(looks):
        moved, sees_ahead, differs = look_once(backbone, layers, look_number)
        for way, names in enumerate(moved):
            ahead[way] |= names[0]
            back |= names[1]
            whole[way] |= sees_ahead[way]
        leaks |= differs
        found = ahead[0] & ahead[1]
        stems = {name.rpartition(".")[0] for name in found | back}
        mixing = [name for name in layers if name.rpartition(".")[0] in stems]
        if all(whole) and found & back >= set(mixing):
            break
    views = [
        LayerView(index, name, kind, name in found, name in back, **from_twin(name, kind, backbone, proof))
        for index, (name, kind) in enumerate(layer_kinds(backbone, mixing).items())
    ]
    return views, all(whole), not leaks


def look_once(
    backbone: PreTrainedModel, layers: dict[str, nn.Module], look_number: int
) -> tuple[list[tuple[set[str], set[str]]], list[bool], bool]:
    """Return which layers look ahead and which back, whether the whole sees ahead, and whether padding leaks.

    Two forwards of a few tokens. The rows: the text; itself (the noise); each layer's input changed at a position;
    the last token changed. Once bare, so that masks may be left out, and once with padding, so that they may not: the
    first two answers are of each. The first look changes the position in the middle alone, the others every one.
    """
    positions = list(range(TOKENS)) if look_number else [TOKENS // 2]
    tokens_1L = test_tokens(backbone, TOKENS + PADS + 1, seed=look_number)
    text_BL = tokens_1L[:, :TOKENS].repeat(len(positions) + 3, 1)
    text_BL[-1, TOKENS - 1] = tokens_1L[0, -1]
    padded_BL = torch.cat((text_BL, tokens_1L[:, TOKENS : TOKENS + PADS].expand(len(text_BL), -1)), 1)
    mask_BL = torch.ones_like(padded_BL)
    mask_BL[:, TOKENS:] = 0
    seen, states = [], []
    for ids_BL, mask in ((text_BL, None), (padded_BL, mask_BL)):
        with perturbed(layers, positions, *ids_BL.shape) as moved:
            states.append(run_model(backbone, ids_BL, attention_mask=mask)[:, :TOKENS])
        ahead, back = set[str](), set[str]()
        for name, moved_PL in moved.items():
            for position, moved_L in zip(positions, moved_PL[:, :TOKENS], strict=True):
                ahead |= {name} if moved_L[:position].any() else set()
                back |= {name} if moved_L[position + 1 :].any() else set()
        seen.append((ahead, back))
    sees_ahead = [bool(what_moved(hidden_BLD[[0, CONTROL, -1]], 1)[0, :-1].all()) for hidden_BLD in states]
    exact = EXACT if states[0].dtype == torch.float32 else HALF_EXACT
    return seen, sees_ahead, differ(states[1][0], states[0][0]) >= exact


def from_twin(name: str, kind: str, backbone: PreTrainedModel, proof: Proof) -> dict[str, Any]:
    """Return what the twin's layer of the same type says: windows, in the sizes of the model, and causal parts."""
    layer = next((layer for layer in proof.layers if layer.kind == kind), None)
    if layer is None:
        return {"window": None}
    parts = tuple(part.removeprefix(f"{layer.name}.") for part in layer.causal_parts)
    if layer.back != layer.ahead and layer.ahead and not parts:
        parts = ("memory beyond the window",)
    size, size_before = window_of(backbone.config), window_of(backbone.config, as_given=True)
    found: dict[str, Any] = {"window": None, "causal_parts": parts}
    if size and proof.window and layer.ahead < LENGTH - 1 and layer.ahead:
        found["window"] = size + layer.ahead - proof.window
    if size_before and proof.window_before and layer.back_before < LENGTH - 1 and not parts:
        found["window_before"] = size_before + layer.back_before - proof.window_before
    return found


def find_fault(views: list[LayerView], proof: Proof, *, whole: bool, padding: bool) -> tuple[str, str, str]:
    """Return the verdict, the reason and the remedy that the findings amount to."""
    mixing = [view for view in views if view.looks_ahead or view.looks_back]
    faulty = [view for view in mixing if view.direction != "both ways"]
    if not any(view.looks_ahead for view in mixing) and not whole:
        return "causal", describe_faults(faulty) or "the whole model: back only", "none exists"
    if not padding:
        return "padding leaks", "padded texts come out differently", "none exists"
    if not faulty and whole and proof.converted:
        return "bidirectional", "", ""
    reason = describe_faults(faulty) or "its small twin does not look both ways everywhere"
    return "partial", f"{len(mixing) - len(faulty)} of {len(mixing)} layers look both ways; {reason}", "--allow-partial"


def other_implementation(model: PreTrainedModel) -> str | None:
    """Return another attention implementation in which the twin passes, if there is one."""
    for name in ("sdpa", "eager"):
        if name != backbone_of(model).config._attn_implementation:
            try:
                small = build_small(model, name)
            except ValueError:  # the class does not have it
                continue
            proof = prove(small)
            if proof.converted and proof.right_padding:
                return name
    return None
