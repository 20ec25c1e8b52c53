"""Which tokens influence which: measured by changing one position and looking at all the others.

B rows of a batch, L positions, D width. Everything is read off one batched forward: row 0 is left as it is, row 1 is
its copy and shows the numerical noise, and every further row is row 0 with one position changed, at the input of the
modules under test. Modules hand on what they compute, so each is tested on its own: what is fed to it is always row 0.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

__all__ = [
    "backbone_of",
    "call_model",
    "decoder_layers",
    "layer_influence",
    "look_around",
    "run_model",
    "test_tokens",
    "token_influence",
]

# A difference counts from this share of a state's own root mean square (half precision rounds at 4e-3 and 5e-4).
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-7}
HALF_TOLERANCE = 1e-3
CONTROL = 1
LOOKED_AT = 8  # tokens


def backbone_of(model: Any) -> PreTrainedModel:
    """Return a model without its adapters' wrapper and without its head."""
    if hasattr(model, "get_base_model"):  # peft
        model = model.get_base_model()
    base = getattr(model, "base_model", model)
    inner = getattr(base, "model", None)  # where the class gives its prefix another name than its attribute
    return inner if base is model and isinstance(inner, PreTrainedModel) else base


def test_tokens(model: PreTrainedModel, length: int, seed: int = 0) -> torch.Tensor:
    """Return ``length`` different ordinary token ids of a model, as int64 of shape [1, L] on its device."""
    config = model.config.get_text_config(decoder=True)
    tables = (module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    size = min(getattr(config, "vocab_size", None) or next(tables), 4 * length + 400)
    special = {value for name, value in vars(config).items() if name.endswith("token_id") and isinstance(value, int)}
    ordinary = [token for token in range(3, size) if token not in special]
    order = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(seed))[:length]
    return torch.tensor([ordinary[index] for index in order.tolist()], device=next(model.parameters()).device)[None]


def call_model(model: PreTrainedModel, input_ids_BL: torch.Tensor, **inputs: Any) -> Any:
    """Return what a backbone gives, without gradients, in evaluation mode, without a cache."""
    names = inspect.signature(model.forward).parameters
    known = any(parameter.kind is parameter.VAR_KEYWORD for parameter in names.values())
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if "use_cache" in names or (known and hasattr(model.config, "use_cache")):
        inputs["use_cache"] = False
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(input_ids=input_ids_BL, **inputs)
    finally:
        model.train(training)


def run_model(model: PreTrainedModel, input_ids_BL: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return the last hidden states [B, L, D] of a backbone, without gradients, in evaluation mode, without a cache."""
    output = call_model(model, input_ids_BL, **inputs)
    if isinstance(output, torch.Tensor):
        return output
    return output.last_hidden_state if "last_hidden_state" in output else output[0]


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers by name: the entries of every list of modules that lies in no other list."""
    layers: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(outer + ".") for outer in layers):
            layers.update({f"{name}.{place}": layer for place, layer in enumerate(module)})
    return layers


def axes_of(tensor: torch.Tensor, rows: int, length: int) -> tuple[int, int] | None:
    """Return which axes are the rows and the positions, by their sizes, neighbours first; None if it lacks either."""
    shape = tuple(tensor.shape)
    if not tensor.is_floating_point() or rows not in shape or length not in shape:
        return None
    pairs = (axis for axis in range(len(shape) - 1) if shape[axis : axis + 2] == (rows, length))
    axis = next(pairs, None)
    return (axis, axis + 1) if axis is not None else (shape.index(rows), shape.index(length))


def find_states(values: Any, rows: int, length: int) -> torch.Tensor | None:
    """Return the first tensor of a nest that has rows and positions."""
    if isinstance(values, torch.Tensor):
        return values if axes_of(values, rows, length) else None
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return None
    found = (find_states(value, rows, length) for value in values)
    return next((states for states in found if states is not None), None)


def rows_first(tensor: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """Return a view [B, L, rest] of a tensor that has rows and positions somewhere."""
    axes = axes_of(tensor, rows, length)
    assert axes is not None
    return tensor.movedim(axes, (0, 1)).flatten(2) if tensor.ndim > 2 else tensor.movedim(axes, (0, 1))[..., None]


def perturb(states: torch.Tensor, positions: list[int], rows: int, length: int) -> torch.Tensor:
    """Return states whose rows from 1 on are row 0: the first as it is, the others with one position changed each."""
    changed = states.clone()
    axes = axes_of(changed, rows, length)
    assert axes is not None
    view = changed.movedim(axes, (0, 1))
    view[CONTROL : CONTROL + 1 + len(positions)] = view[0].clone()
    noise = torch.Generator().manual_seed(1)
    for row, position in enumerate(positions, start=CONTROL + 1):
        scale = view[0, position].float().pow(2).mean().sqrt().clamp_min(1e-3)
        step = torch.randn(view[row, position].shape, generator=noise).to(view.device) * scale
        view[row, position] += step.to(view.dtype)
    return changed


@contextlib.contextmanager
def perturbed(
    modules: dict[str, nn.Module], positions: list[int], rows: int, length: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Feed row 0, with one position changed, to the rows from 2 on of each module; collect what moved.

    Yields a dictionary that fills, during the forward, with ``moved_PL`` of each module: whether position i of its
    output moved when position ``positions[p]`` of its input was changed. A module that is called several times
    must move each time, so that a causal pass is not hidden by another one.
    """
    moved: dict[str, torch.Tensor] = {}
    fed: set[str] = set()

    def before(name: str, _: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        fed.discard(name)
        for key, value in [*enumerate(args), *kwargs.items()]:
            if "mask" in str(key) or not isinstance(value, torch.Tensor) or not axes_of(value, rows, length):
                continue
            fed.add(name)
            changed = perturb(value, positions, rows, length)
            if isinstance(key, int):
                return (*args[:key], changed, *args[key + 1 :]), kwargs
            return args, {**kwargs, key: changed}
        return None

    def after(name: str, _: nn.Module, args: tuple, output: Any) -> None:
        states = find_states(output, rows, length) if name in fed else None
        if states is not None:
            now = what_moved(rows_first(states, rows, length), len(positions))
            moved[name] = now & moved[name] if name in moved else now

    handles = []
    for name, module in modules.items():
        feed, read = functools.partial(before, name), functools.partial(after, name)
        handles.append(module.register_forward_pre_hook(feed, with_kwargs=True, prepend=True))
        handles.append(module.register_forward_hook(read))
    try:
        yield moved
    finally:
        for handle in handles:
            handle.remove()


def what_moved(states_BLD: torch.Tensor, changes: int) -> torch.Tensor:
    """Return [P, L]: whether each position differs from row 0 by more than the tolerance and the noise."""
    tolerance = TOLERANCE.get(states_BLD.dtype, HALF_TOLERANCE)
    states_BLD = states_BLD.float() if states_BLD.dtype != torch.float64 else states_BLD
    clean_LD = states_BLD[0]
    scale_L = clean_LD.pow(2).mean(-1).sqrt().clamp_min(1e-6)
    far_BL = (states_BLD - clean_LD).abs().amax(-1) / scale_L
    noise_L = far_BL[CONTROL]
    return (far_BL[CONTROL + 1 : CONTROL + 1 + changes] > (4 * noise_L).clamp_min(tolerance)).cpu()


def layer_influence(
    model: PreTrainedModel,
    modules: dict[str, nn.Module],
    input_ids_1L: torch.Tensor,
    positions: list[int],
    **inputs: Any,
) -> dict[str, torch.Tensor]:
    """Return for each module that was called ``moved_PL``: which positions of its output a change of its input moves.

    Parameters
    ----------
    model
        A backbone.
    modules
        What to test, by name; none may lie in another.
    input_ids_1L
        Token ids of one row.
    positions
        The positions to change, one at a time.
    inputs
        What the forward takes besides; tensors of one row are repeated.
    """
    rows, length = len(positions) + 2, input_ids_1L.shape[1]
    rows += rows == length  # axes are told apart by their sizes
    with perturbed(modules, positions, rows, length) as moved:
        run_model(model, input_ids_1L.expand(rows, -1), **repeat_rows(inputs, rows))
    return moved


def token_influence(model: PreTrainedModel, input_ids_1L: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Return ``moved_LL``: whether the last state i of a backbone moves when token j, the row, is another one."""
    length = input_ids_1L.shape[1]
    changed_BL = input_ids_1L.repeat(length + 2, 1)
    others_L = input_ids_1L[0].roll(length // 2)
    for position in range(length):
        changed_BL[CONTROL + 1 + position, position] = others_L[position]
    return what_moved(run_model(model, changed_BL, **repeat_rows(inputs, length + 2)), length)


def look_around(model: PreTrainedModel) -> tuple[bool, bool]:
    """Say whether last states of a language model move with tokens that stand before them, and with later ones."""
    moved_LL = token_influence(backbone_of(model), test_tokens(model, LOOKED_AT))
    return bool(torch.triu(moved_LL, 1).any()), bool(torch.tril(moved_LL, -1).any())


def repeat_rows(value: Any, rows: int) -> Any:
    """Repeat tensors of one row, also inside a dictionary."""
    if isinstance(value, dict):
        return {name: repeat_rows(entry, rows) for name, entry in value.items()}
    return value.expand(rows, *value.shape[1:]) if isinstance(value, torch.Tensor) else value
