"""Make a decoder's attention look both ways, in place, and prove it layer by layer.

Nothing is trained or encoded before this says so. Two things are looked at: the model with its own weights, on a few
tokens, at every load; and its small twin (`turncoder.model.proof`), once, for what takes longer texts to see.

In the names of tensors: B rows of a batch, L positions, D width.
"""

import dataclasses
import itertools
import logging
import re
import time
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel

from turncoder.errors import ConversionError
from turncoder.model.conversion import REPAIRS, convert
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
    differ,
    layer_kinds,
    measure,
    prove,
    window_of,
)

__all__ = ["AttentionReport", "LayerView", "attention_map", "check_attention", "make_bidirectional", "reopens"]

logger = logging.getLogger("turncoder")

TOKENS, PADS = 3, 2
REPAIR_NAMES = {
    "flags": "module.is_causal = False",
    "buffers": "causal buffers mirrored",
    "masks": "mask factories wrapped",
}


@dataclasses.dataclass(frozen=True)
class LayerView:
    """What one layer sees."""

    index: int
    name: str
    kind: str
    """Its type as the configuration states it; empty where there is but one."""
    looks_ahead: bool
    """Whether a position of its output moves when the next position of its input is changed."""
    looks_back: bool
    window: int | None
    """Positions that it reaches to each side; None without a window."""
    window_before: int | None = None
    """Positions that it reached back to before the conversion."""
    causal_parts: tuple[str, ...] = ()
    """Modules inside it that mix tokens and look back only (convolutions, recurrent branches)."""

    @property
    def direction(self) -> str:
        """Where it looks: both ways, back only, back further than ahead, ahead only, or at no other token."""
        if self.looks_ahead and self.looks_back:
            return "back further than ahead" if self.causal_parts else "both ways"
        if self.looks_ahead or self.looks_back:
            return "ahead only" if self.looks_ahead else "back only"
        return "no other token"


@dataclasses.dataclass(frozen=True)
class AttentionReport:
    """What was found about a model, and what was done to it."""

    architecture: str
    model_type: str
    implementation: str
    verdict: str
    """"bidirectional", "partial" (some layers are), "causal" or "padding leaks"."""
    reason: str
    """Why it is not bidirectional; empty if it is."""
    remedy: str
    """What helps; empty if nothing is wrong."""
    how: tuple[str, ...]
    """What made it bidirectional."""
    left_padding: str
    """"exact", "needs position_ids" or "impossible"; right padding is exact in every model that is accepted."""
    reopens: str
    """How plain `AutoModel` opens a saved copy: "bidirectional", "causal", "disagrees" or "fails"."""
    layers: tuple[LayerView, ...]
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return dataclasses.asdict(self) | {"summary": self.summary}

    @property
    def summary(self) -> str:
        """One line: how many layers look where."""
        mixing = [layer for layer in self.layers if layer.looks_ahead or layer.looks_back]
        ahead = sum(layer.direction == "both ways" for layer in mixing)
        windows = sorted({layer.window for layer in mixing if layer.window is not None})
        text = f"{ahead} of {len(mixing)} layers look both ways" if mixing else f"the whole model is {self.verdict}"
        return text + (f", windows of {', '.join(f'+-{window}' for window in windows)}" if windows else "")

    def table(self) -> Table:
        """Return the layers as a table for rich."""
        table = Table("layer", "type", "looks", "window", "before", title=f"{self.architecture}: {self.verdict}")
        for layer in self.layers:
            window = "" if layer.window is None else f"+-{layer.window}"
            before = "" if layer.window_before is None else f"-{layer.window_before}"
            inside = f" ({', '.join(layer.causal_parts)})" if layer.causal_parts else ""
            table.add_row(layer.name, layer.kind, layer.direction + inside, window, before)
        return table


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

    Raises
    ------
    ConversionError
        Layers stay causal, or padding leaks; the message names the layers and the remedy.
    """
    started = time.perf_counter()
    proof = prove(model)
    key = convert(model, REPAIRS if proof.error else proof.repairs)
    how = () if proof.before == "bidirectional" else (key, *(REPAIR_NAMES[repair] for repair in proof.repairs))
    return judge(model, proof, how, allow_partial=allow_partial, started=started)


def check_attention(model: PreTrainedModel, *, allow_partial: bool = False) -> AttentionReport:
    """Prove that a model is bidirectional as it stands, without changing it.

    Raises
    ------
    ConversionError
        It is not; the message names the layers and the remedy.
    """
    started = time.perf_counter()
    return judge(model, prove(model), (), allow_partial=allow_partial, started=started)


def attention_map(model: PreTrainedModel) -> list[LayerView]:
    """Measure what each layer of a model, as it stands, sees: one entry per layer that mixes tokens, or could."""
    return look(model, prove(model))[0]


def reopens(model: PreTrainedModel) -> str:
    """Return how plain `AutoModel` would open a saved copy: "bidirectional", "causal", "disagrees" or "fails".

    It "disagrees" where texts with and without padding, or short and long ones, get different attention.
    """
    return prove(model).reopens


def look(model: PreTrainedModel, proof: Proof) -> tuple[list[LayerView], bool, bool]:
    """Look at a model with its own weights: its layers, whether the whole sees ahead, whether padding is exact.

    Two forwards of a few tokens. The rows: the text; itself (the noise); each layer's input changed in the middle;
    the last token changed. Once bare, so that masks may be left out, and once with padding, so that they may not.
    """
    backbone = backbone_of(model)
    layers = decoder_layers(backbone)
    tokens_1L = test_tokens(backbone, TOKENS + PADS + 1)
    text_BL = tokens_1L[:, :TOKENS].repeat(4, 1)
    text_BL[3, TOKENS - 1] = tokens_1L[0, -1]
    padded_BL = torch.cat((text_BL, tokens_1L[:, TOKENS : TOKENS + PADS].expand(4, -1)), 1)
    mask_BL = torch.ones_like(padded_BL)
    mask_BL[:, TOKENS:] = 0
    middle, seen, states = TOKENS // 2, [], []
    for ids_BL, mask in ((text_BL, None), (padded_BL, mask_BL)):
        with perturbed(layers, [middle], *ids_BL.shape) as moved:
            hidden_BLD = run_model(backbone, ids_BL, attention_mask=mask)[:, :TOKENS]
        seen.append({name: moved_PL[0, :TOKENS] for name, moved_PL in moved.items()})
        states.append(hidden_BLD)
    whole = all(bool(what_moved(hidden_BLD[[0, CONTROL, 3]], 1)[0, :-1].all()) for hidden_BLD in states)
    exact = EXACT if states[0].dtype == torch.float32 else HALF_EXACT
    padding = differ(states[1][0], states[0][0]) < exact
    both = {name: [once[name] for once in seen] for name in seen[0]}
    ahead = {name: all(bool(moved_L[:middle].any()) for moved_L in twice) for name, twice in both.items()}
    back = {name: any(bool(moved_L[middle + 1 :].any()) for moved_L in twice) for name, twice in both.items()}
    mixing = {name.rpartition(".")[0] for name in both if ahead[name] or back[name]}
    kinds = layer_kinds(backbone, [name for name in both if name.rpartition(".")[0] in mixing])
    views = [
        LayerView(index, name, kind, ahead[name], back[name], **from_twin(name, kind, backbone, proof))
        for index, (name, kind) in enumerate(kinds.items())
    ]
    return views, whole, padding


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


def judge(
    model: PreTrainedModel, proof: Proof, how: tuple[str, ...], *, allow_partial: bool, started: float
) -> AttentionReport:
    """Put the model's own weights and the twin together; raise unless the model may be used."""
    backbone = backbone_of(model)
    if proof.error:
        logger.warning(
            "%s has no small twin (%s): the proof runs on the model itself", type(backbone).__name__, proof.error
        )
        proof = dataclasses.replace(measure(backbone), reopens="fails")
    views, whole, padding = look(model, proof)
    report = AttentionReport(
        architecture=type(backbone).__name__,
        model_type=backbone.config.model_type,
        implementation=str(backbone.config._attn_implementation),
        verdict="bidirectional",
        reason="",
        remedy="",
        how=how,
        left_padding=proof.left_padding,
        reopens=proof.reopens,
        layers=tuple(views),
    )
    report = find_fault(report, proof, whole=whole, padding=padding and proof.right_padding)
    if report.verdict == "partial" and allow_partial:
        logger.warning("%s: %s", report.architecture, report.reason)
    elif report.verdict != "bidirectional":
        if proof.converted and proof.right_padding:
            remedy = "turncoder.make_bidirectional(model)"
        else:
            other = other_implementation(model)
            remedy = f"--attn_implementation {other}" if other else report.remedy
        raise ConversionError(f"{report.architecture} ({report.implementation}): {report.reason}; remedy: {remedy}")
    return dataclasses.replace(report, seconds=round(time.perf_counter() - started, 3))


def find_fault(report: AttentionReport, proof: Proof, *, whole: bool, padding: bool) -> AttentionReport:
    """Give the verdict, the reason and the remedy that the findings amount to."""
    mixing = [layer for layer in report.layers if layer.looks_ahead or layer.looks_back]
    faulty = [layer for layer in mixing if layer.direction != "both ways"]
    if not padding:
        return dataclasses.replace(
            report, verdict="padding leaks", reason="padded texts come out differently", remedy="none exists"
        )
    if not faulty and whole and proof.converted:
        return report
    if len(faulty) == len(mixing) and not any(layer.looks_ahead for layer in mixing):
        reason = f"{name_layers(faulty) or 'the whole model'}: look back only"
        return dataclasses.replace(report, verdict="causal", reason=reason, remedy="none exists")
    faults = [
        f"{name_layers(list(layers))}: {direction}" + (f" ({', '.join(parts)})" if parts else "")
        for (direction, parts), layers in group_faults(faulty).items()
    ]
    reason = "; ".join(faults) or "the twin of this architecture does not look both ways everywhere"
    reason = f"{len(mixing) - len(faulty)} of {len(mixing)} layers look both ways; {reason}"
    return dataclasses.replace(report, verdict="partial", reason=reason, remedy="--allow-partial")


def group_faults(layers: list[LayerView]) -> dict[tuple[str, tuple[str, ...]], list[LayerView]]:
    """Group layers by what they do wrong."""
    groups: dict[tuple[str, tuple[str, ...]], list[LayerView]] = {}
    for layer in layers:
        groups.setdefault((layer.direction, layer.causal_parts), []).append(layer)
    return groups


def name_layers(layers: list[LayerView]) -> str:
    """Return names of layers in short, like ``layers.0-2,5``."""
    stems: dict[str, list[int]] = {}
    for layer in layers:
        stem, _, number = layer.name.rpartition(".")
        stems.setdefault(stem, []).append(int(number) if re.fullmatch(r"\d+", number) else layer.index)
    texts = []
    for stem, numbers in stems.items():
        runs = [
            [number for _, number in run]
            for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
        ]
        texts.append(stem + "." + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs))
    return " ".join(texts)


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
