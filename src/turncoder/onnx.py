"""An ONNX graph beside the weights of a model folder, bidirectional like the model that it is made of.

``SentenceTransformer(folder, backend="onnx")``, Text Embeddings Inference and plain ONNX Runtime read
``onnx/model.onnx``. The graph is made by torch and not by Optimum, which has no release for transformers 5; with an
older transformers, which does not know ``is_causal``, it would export the causal model without a word.

Tensor names: B batch, L length.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from turncoder.disk import replace_folder
from turncoder.encode.encoder import load_encoder
from turncoder.errors import UserError

__all__ = ["export_onnx"]

logger = logging.getLogger("turncoder")

NAMES = ("input_ids", "attention_mask")
TOLERANCE = 1e-4
"""Of the states' largest value: how far those of the graph may be from the model's."""
ONE_FILE = 2**31 - 2**20
"""Bytes that a graph with its weights may have; those of larger models go into a file beside it."""


class States(torch.nn.Module):
    """A backbone as a function of token ids and mask."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states."""
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def export_onnx(folder: str | Path, *, allow_partial: bool = False) -> Path:
    """Write ``onnx/model.onnx`` into a model folder, in float32, and compare its states with the model's.

    Parameters
    ----------
    folder
        A sentence-transformers folder whose attention is proven, as by `load_encoder`; a graph that is there already
        is replaced.
    allow_partial
        Export a model of which only some layers look ahead.

    Returns
    -------
    Path
        The graph.

    Raises
    ------
    UserError
        No such folder; onnx, onnxscript or onnxruntime is missing; the architecture cannot be exported, or its graph
        does not agree with the model.
    """
    folder = Path(folder)
    if not (folder / "modules.json").exists():
        raise UserError(f"{folder} is no model folder (it has no modules.json); name RUN/model")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise UserError(f"the export needs {error.name}: pip install 'turncoder[onnx]'") from error
    encoder = load_encoder(str(folder), device="cpu", dtype="float32", allow_partial=allow_partial)
    backbone = encoder.transformers_model
    if not isinstance(backbone, PreTrainedModel):
        raise UserError(f"{folder} holds no transformers model to export")
    if hasattr(backbone, "set_experts_implementation"):  # ONNX has no operator for the others
        backbone.set_experts_implementation("batched_mm")
    with replace_folder(folder / "onnx") as partial:
        _export(States(backbone).eval(), partial / "model.onnx")
        session = onnxruntime.InferenceSession(partial / "model.onnx", providers=["CPUExecutionProvider"])
        _compare(backbone, session)
        del session
    return folder / "onnx" / "model.onnx"


def _export(states: States, path: Path) -> None:
    size = sum(parameter.numel() * parameter.element_size() for parameter in states.parameters())
    axes: Any = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    name = type(states.backbone).__name__
    try:
        with torch.no_grad():
            torch.onnx.export(
                states,
                _batch(states.backbone, 2, 7),
                path,
                dynamo=True,
                input_names=list(NAMES),
                output_names=["last_hidden_state"],
                dynamic_shapes=dict.fromkeys(NAMES, axes),
                external_data=size > ONE_FILE,
                verbose=False,
            )
    except Exception as error:  # torch.onnx's own errors, and whatever a model's code raises when it is traced
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else ''}"
        raise UserError(f"{name} cannot be exported to ONNX by torch {torch.__version__} ({reason})") from error


def _compare(backbone: PreTrainedModel, session: Any) -> None:
    """Run the graph at other shapes than it was made with; what a causal graph gives would be far away."""
    for size, length in ((3, 16), (1, 5)):
        ids_BL, mask_BL = _batch(backbone, size, length)
        fed = {"input_ids": ids_BL.numpy(), "attention_mask": mask_BL.numpy()}
        graphs = torch.from_numpy(session.run(None, fed)[0])
        with torch.no_grad():
            ours = States(backbone)(ids_BL, mask_BL)
        there = mask_BL.bool()
        error = ((graphs - ours)[there].abs().max() / ours[there].abs().max()).item()
        if not error < TOLERANCE:
            name = type(backbone).__name__
            raise UserError(f"{name}: the states of the ONNX graph are {error:.1g} away from the model's; not written")
        logger.info("onnx: %d x %d tokens, states agree to %.1g", size, length, error)


def _batch(backbone: PreTrainedModel, size: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random token ids and a mask; the last of several rows is padded on the right."""
    generator = torch.Generator().manual_seed(length)
    ids_BL = torch.randint(backbone.config.get_text_config().vocab_size, (size, length), generator=generator)
    mask_BL = torch.ones_like(ids_BL)
    if size > 1:
        mask_BL[-1, length // 2 :] = 0
    return ids_BL, mask_BL
