"""What can be proven about an architecture on its small twin, once per class, configuration and library version.

The twin shows what the real weights cannot show quickly: how far windows reach before and after the conversion, which
parts inside a layer stay causal, whether padding on either side leaks, which repairs are needed, and how plain
`AutoModel` would reopen a saved copy. The result is kept on disk.
"""

import contextlib
import dataclasses

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from turncoder.model import twin
from turncoder.model.conversion import REPAIRS, causal_config, causal_masks, convert
from turncoder.model.influence import (
    backbone_of,
    decoder_layers,
    layer_influence,
    run_model,
    test_tokens,
    token_influence,
)
from turncoder.model.memory import remember
from turncoder.model.twin import build_twin

__all__ = ["Proof", "TwinLayer", "layer_kinds", "prove"]

LENGTH = 23
"""Positions of a test row: more than twice the twin's window, and equal to no other size of it."""
PADS = 3
SHORT = 3
"""Positions of a row that fits in the twin's window: some masks are left out then."""
EXACT = 1e-4
HALF_EXACT = 5e-2


@dataclasses.dataclass(frozen=True)
class TwinLayer:
    """What one layer of the twin does: how many positions back and ahead it reaches, as it came and converted."""

    name: str
    kind: str
    back_before: int
    back: int
    ahead: int
    causal_parts: tuple[str, ...]
    """Modules inside the layer that mix tokens and only look back."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "causal_parts", tuple(self.causal_parts))  # JSON has lists


@dataclasses.dataclass(frozen=True)
class Proof:
    """The findings on a twin."""

    layers: tuple[TwinLayer, ...]
    window: int | None
    """Value of the twin's window at run time, if it has one."""
    window_before: int | None
    repairs: tuple[str, ...]
    """What is needed besides the key of the configuration."""
    before: str
    """"causal", "bidirectional" or "fails": what the model is before the conversion."""
    converted: bool
    """Whether every layer that mixes tokens looks both ways alike, and the whole model with and without a mask."""
    sees_ahead: tuple[bool, ...]
    """Whether every position of the whole model but the last is moved by a later token: bare, padded, a short text."""
    right_padding: bool
    left_padding: str
    """"exact", "needs position_ids" or "impossible"."""
    reopens: str
    error: str | None = None
    """Why the twin could not be built or run."""


NOTHING = Proof((), None, None, (), "fails", False, (), False, "impossible", "fails")


def prove(model: PreTrainedModel) -> Proof:
    """Return the findings on the twin of a model, from the cache if they are there."""
    kept = remember(model, "attention", lambda: dataclasses.asdict(examine(model)))
    lists = {"layers": tuple(TwinLayer(**layer) for layer in kept["layers"])}
    return Proof(**kept | lists | {name: tuple(kept[name]) for name in ("repairs", "sees_ahead")})


def build_small(model: PreTrainedModel, attn_implementation: str | None = None) -> PreTrainedModel:
    """Build the twin of a backbone before its conversion, in its or another attention implementation."""
    backbone = backbone_of(model)
    small = build_twin(causal_config(backbone.config), type(backbone), attn_implementation=attn_implementation)
    if backbone.config._attn_implementation not in ("eager", "sdpa", None):
        parameter = next(backbone.parameters())
        half = parameter.dtype if parameter.dtype != torch.float32 else torch.bfloat16
        nn.Module.to(small, parameter.device)
        if "flash" in backbone.config._attn_implementation:
            nn.Module.to(small, half)
    return small


def examine(model: PreTrainedModel) -> Proof:
    """Convert the twin with as few repairs as it takes, and measure it."""
    try:
        small = build_small(model)
        with causal_masks(small):
            before = measure(small)
    except Exception as error:  # whatever a class raises is the finding
        return dataclasses.replace(NOTHING, error=describe_error(error))
    found = attempt(model, (), before)
    if not found.converted or not found.right_padding:
        helped = attempt(model, REPAIRS, before)
        if rank(helped) > rank(found):
            tried = (attempt(model, (repair,), before) for repair in REPAIRS)
            found = next((one for one in tried if rank(one) == rank(helped)), helped)
    state = "bidirectional" if before.converted else "causal"
    return dataclasses.replace(found, before=state, window_before=before.window, reopens=reopen(model, found))


def attempt(model: PreTrainedModel, repairs: tuple[str, ...], before: Proof) -> Proof:
    """Convert a fresh twin with some repairs, and measure it."""
    small = build_small(model)
    convert(small, repairs)
    with contextlib.nullcontext() if "masks" in repairs else causal_masks(small):
        try:
            return dataclasses.replace(measure(small, before.layers), repairs=repairs)
        except Exception as error:
            return dataclasses.replace(NOTHING, error=describe_error(error))


def describe_error(error: Exception) -> str:
    """Return what an error of somebody else's code says, in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def rank(proof: Proof) -> tuple[bool, bool, int]:
    """Order findings: how far a conversion came."""
    return proof.converted, proof.right_padding, sum(layer.ahead > 0 for layer in proof.layers)


def measure(small: PreTrainedModel, before: tuple[TwinLayer, ...] = ()) -> Proof:
    """Measure a twin as it stands."""
    ids_1L = test_tokens(small, LENGTH)
    real = LENGTH - PADS
    mask_1L = torch.ones_like(ids_1L)
    mask_1L[:, real:] = 0
    layers = decoder_layers(small)
    plain = layer_influence(small, layers, ids_1L, list(range(LENGTH)))
    padded = layer_influence(small, layers, ids_1L, list(range(real)), attention_mask=mask_1L)
    mixing = {name.rpartition(".")[0] for name, moved in plain.items() if any(reach(moved))}
    kinds = layer_kinds(small, [name for name in plain if name.rpartition(".")[0] in mixing])
    parts = causal_parts(small, layers, ids_1L)
    reach_before = {layer.name: layer.back for layer in before}
    found = []
    for name, kind in kinds.items():
        back, ahead = reach(plain[name])
        padded_ahead = reach(padded[name][:, :real])[1]
        inside = tuple(part for part in parts if part.startswith(f"{name}."))
        found.append(TwinLayer(name, kind, reach_before.get(name, back), back, ahead if padded_ahead else 0, inside))
    sees_ahead = [
        sees_later(token_influence(small, ids_1L)),
        sees_later(token_influence(small, ids_1L, attention_mask=mask_1L)[:real, :real]),
        sees_later(token_influence(small, ids_1L[:, :SHORT])),
    ]
    alike = all(layer.back == layer.ahead and not layer.causal_parts for layer in found)
    return Proof(
        layers=tuple(found),
        window=window_of(small.config),
        window_before=None,
        repairs=(),
        before="",
        converted=all(sees_ahead) and alike,
        sees_ahead=tuple(sees_ahead),
        right_padding=pads_exactly(small, "right") and pads_exactly(small, "right", length=SHORT),
        left_padding=left_padding(small),
        reopens="",
    )


def reach(moved_PL: torch.Tensor) -> tuple[int, int]:
    """Return how many positions back and ahead any position sees."""
    changed, seen_by = torch.nonzero(moved_PL, as_tuple=True)
    distance = seen_by - changed
    return (int(distance.max().clamp_min(0)), int((-distance).max().clamp_min(0))) if len(distance) else (0, 0)


def sees_later(moved_LL: torch.Tensor) -> bool:
    """Return whether every position but the last is moved by some later token."""
    return bool(torch.tril(moved_LL, -1).any(0)[:-1].all())


def causal_parts(small: PreTrainedModel, layers: dict[str, nn.Module], ids_1L: torch.Tensor) -> list[str]:
    """Return the modules inside layers that hand what they are fed to later positions, and to no earlier one."""
    levels: dict[int, dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        for part, module in layer.named_modules():
            if part:
                levels.setdefault(part.count("."), {})[f"{name}.{part}"] = module
    middle = LENGTH // 2
    found: list[str] = []
    for modules in levels.values():
        for name, moved_PL in layer_influence(small, modules, ids_1L, [middle]).items():
            earlier, later = moved_PL[0, :middle].any(), moved_PL[0, middle + 1 :].any()
            if later and not earlier and not any(name.startswith(f"{outer}.") for outer in found):
                found.append(name)
    return found


def window_of(config: PreTrainedConfig, as_given: bool = False) -> int | None:
    """Return the window of a configuration: as the model uses it, or as it was given (Gemma 3 and 4 halve it)."""
    text = config.get_text_config(decoder=True)
    values = text.to_dict() if as_given else vars(text)
    windows = (values.get(name, getattr(text, name, None)) for name in twin.WINDOWS.split())
    return next((window for window in windows if isinstance(window, int)), None)


def layer_kinds(model: PreTrainedModel, names: list[str]) -> dict[str, str]:
    """Return the type of each layer by its name, as the configuration states it ("" where it does not)."""
    text = model.config.get_text_config(decoder=True)
    for field in ("layer_types", "attention_layers", "layers_block_type"):
        types = getattr(text, field, None)
        if isinstance(types, (list, tuple)) and len(types) == len(names):
            return dict(zip(names, types, strict=True))
    return dict.fromkeys(names, "")


def differ(states: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference in standard deviations of what is expected."""
    return float((states.float() - expected.float()).abs().max() / expected.float().std().clamp_min(1e-6))


def pads_exactly(small: PreTrainedModel, side: str, positions: bool = False, length: int = LENGTH - PADS) -> bool:
    """Return whether a row with padding on one side gives the states of the same row without."""
    ids_1L = test_tokens(small, length)
    pad = getattr(small.config.get_text_config(decoder=True), "pad_token_id", None)
    pads_1L = ids_1L.new_full((1, PADS), pad if isinstance(pad, int) and pad >= 0 else 0)
    ones_1L, zeros_1L = torch.ones_like(ids_1L), torch.zeros_like(pads_1L)
    pair = (pads_1L, ids_1L) if side == "left" else (ids_1L, pads_1L)
    mask_1L = torch.cat((zeros_1L, ones_1L) if side == "left" else (ones_1L, zeros_1L), -1)
    position_ids = (mask_1L.cumsum(-1) - 1).clamp_min(0) if positions else None
    alone = run_model(small, ids_1L)
    ones = run_model(small, ids_1L, attention_mask=ones_1L)
    together = run_model(small, torch.cat(pair, -1), attention_mask=mask_1L, position_ids=position_ids)
    together = together[:, PADS:] if side == "left" else together[:, :-PADS]
    exact = EXACT if alone.dtype == torch.float32 else HALF_EXACT
    return differ(together, alone) < exact and differ(ones, alone) < exact


def left_padding(small: PreTrainedModel) -> str:
    """Return what left padding takes: nothing, position_ids, or that it cannot be exact."""
    for positions, answer in ((False, "exact"), (True, "needs position_ids")):
        with contextlib.suppress(Exception):
            if pads_exactly(small, "left", positions):
                return answer
    return "impossible"


def reopen(model: PreTrainedModel, converted: Proof) -> str:
    """Return what plain `AutoModel` makes of a saved copy: "bidirectional", "causal", "disagrees" or "fails".

    It "disagrees" where some texts, or some layers, get another attention than in the model that was saved.
    """
    try:
        saved = build_small(model)
        convert(saved, ())
        config = type(saved.config).from_dict(saved.config.to_dict())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            small = AutoModel.from_config(config).eval()
            twin.redraw_weights(small)
        with causal_masks(small):
            opened = measure(small)
    except Exception:  # any error means that it does not open
        return "fails"
    expected = [layer.ahead for layer in converted.layers]
    if [layer.ahead for layer in opened.layers] == expected and all(opened.sees_ahead) and opened.right_padding:
        return "bidirectional"
    return "disagrees" if any(opened.sees_ahead) or any(layer.ahead for layer in opened.layers) else "causal"
