"""Take the language-model head off a causal model: from its last hidden states to its logits.

Nothing here knows an architecture. The wrapper's own forward is run with its backbone replaced, for that call, by one
that hands out given states, and, to look behind the vocabulary's weight, with the output embedding replaced too. Three
facts are measured that way, and then proven against the model's own logits:

- what the model does before the weight (a norm, a projection; mostly nothing) is run as the model does it;
- what it does after it, where that is a scale and a soft cap on every entry alike, is measured in double precision;
- anything else makes the whole head run as the model has it, on the selected rows only.

Legend: K rows, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from turncoder.errors import UserError

__all__ = ["Head", "take_backbone", "take_head"]

PROBE_TOKENS = 4
FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, LookupError)
"""What a forward may raise that was not written for what is asked of it here."""


class _CapturedError(Exception):
    """Ends a forward once what enters the output embedding is known."""


class Head:
    """Logits from rows of last hidden states, exactly as the model's own forward computes them.

    Not a module: nothing of it appears in a state dict or moves by itself. It holds the model's own parameters, not
    copies, so that a tied weight follows the embedding.

    Attributes
    ----------
    is_tied
        Whether the output embedding is a parameter of the backbone.
    is_linear
        Logits are ``cap(scale * (features(rows) @ weight_VD.T + bias_V))``.
    scale, softcap
        As measured; ``softcap`` None is none.
    trainable
        Whether gradients reach weight and bias; a frozen head lets them pass to the rows only, a tied one included.
    """

    def __init__(self, model: PreTrainedModel, core: nn.Module, output_type: type, width: int) -> None:
        self._model, self._core, self._output_type, self._width = model, core, output_type, width
        backbone = take_backbone(model)
        inside, shared = set(backbone.modules()), {id(parameter) for parameter in backbone.parameters()}
        self._modules = {name: module for name, module in model.named_modules() if module not in inside}
        # Owners and names, not the parameters: whoever replaces a parameter is followed. Decided once, since a
        # trainer may register what trains within the backbone.
        self._own: dict[str, tuple[nn.Module, str]] = {}
        known = set(shared)
        for path, module in self._modules.items():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in known:  # nor known by another name, as BERT's output bias is
                    self._own[f"{path}.{name}".lstrip(".")] = (module, name)
                    known.add(id(parameter))
        embeddings = model.get_output_embeddings()
        self.is_tied = embeddings is not None and id(getattr(embeddings, "weight", None)) in shared
        self._keeps_rows = False
        self.is_linear = False
        self.scale: float = 1.0
        self.softcap: float | None = None
        self.trainable = False
        self._prior_V: Tensor | None = None
        self._temperature = 1.0

    def add_prior(self, log_prior_V: Tensor, temperature: float = 1.0) -> Head:
        """Divide logits by a temperature and add a fixed bias to them: what a headless model lacks. Returns the head.

        ``features`` are divided, so that ``features @ weight_VD.T`` is what contrastive weight tying was trained on.
        """
        if self.softcap is not None:  # which the prior stays outside of
            self.is_linear = False
        self._prior_V, self._temperature = log_prior_V.detach().float(), temperature
        return self

    @property
    def kind(self) -> str:
        """How logits are computed: "linear", "features + linear" or "own forward"."""
        if not self.is_linear:
            return "own forward"
        return "linear" if self._keeps_rows else "features + linear"

    @property
    def weight_VD(self) -> Tensor:
        """The output embedding; detached from the graph while the head is frozen."""
        weight_VD = self._model.get_output_embeddings().weight
        return weight_VD if self.trainable else weight_VD.detach()

    @property
    def bias_V(self) -> Tensor | None:
        """Bias of the output embedding, if it has one, detached while the head is frozen; with the prior, if any."""
        bias_V = self._model.get_output_embeddings().bias
        if bias_V is not None and not self.trainable:
            bias_V = bias_V.detach()
        if self._prior_V is None:
            return bias_V
        prior_V = self._prior_V / self.scale  # the bias stands inside of the scale
        return prior_V if bias_V is None else bias_V + prior_V

    @property
    def output_bias(self) -> nn.Parameter | None:
        """The bias parameter of the output embedding, if it has one."""
        return getattr(self._model.get_output_embeddings(), "bias", None)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that belong to the head and not to the backbone, by their names in the causal model."""
        return {name: getattr(module, attribute) for name, (module, attribute) in self._own.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Parameters that belong to the head and not to the backbone."""
        return list(self.named_parameters().values())

    def train(self, mode: bool = True) -> Head:
        """Let gradients reach the head's parameters, or freeze them; returns the head."""
        self.trainable = mode
        for parameter in self.parameters():
            parameter.requires_grad_(mode)
        return self

    def to(self, device: torch.device | str) -> Head:
        """Move what is the head's alone; the backbone moves by itself. Returns the head."""
        if self._prior_V is not None:
            self._prior_V = self._prior_V.to(device)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)
        for module in self._modules.values():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        return self

    def features(self, rows_KD: Tensor) -> Tensor:
        """Return what enters the output embedding: the rows themselves, or what the model makes of them."""
        features_KD = self._enter(rows_KD)
        return features_KD if self._temperature == 1 else features_KD / self._temperature

    def _enter(self, rows_KD: Tensor) -> Tensor:
        if self._keeps_rows or rows_KD.shape[0] == 0:
            return rows_KD
        captured: list[Tensor] = []

        def capture(features: Tensor, *_: Any, **__: Any) -> Tensor:
            captured.append(features)
            raise _CapturedError

        try:
            self._run(rows_KD, capture)
        except _CapturedError:
            return captured[0].reshape(rows_KD.shape[0], -1)
        raise AssertionError("the model no longer calls its output embedding")

    def __call__(self, rows_KD: Tensor) -> Tensor:
        """Logits_KV of the rows, differentiable."""
        if not self.is_linear:
            logits_KV = self._run(rows_KD)
            return logits_KV if self._prior_V is None else logits_KV / self._temperature + self._prior_V
        weight_VD, bias_V = self.weight_VD, self.bias_V
        if self._prior_V is None:
            logits_KV = F.linear(self.features(rows_KD), weight_VD, bias_V)
        else:  # in its own precision
            logits_KV = F.linear(self.features(rows_KD), weight_VD)
            logits_KV = logits_KV if bias_V is None else logits_KV + bias_V
        if self.scale != 1:
            logits_KV = logits_KV * self.scale
        return logits_KV if self.softcap is None else torch.tanh(logits_KV / self.softcap) * self.softcap

    def _run(self, rows_KD: Tensor, embedding: Callable[..., Tensor] | None = None) -> Tensor:
        """Run the wrapper's forward on given states, and, if told so, another output embedding."""
        states = self._output_type(last_hidden_state=rows_KD[None])
        with ExitStack() as stack:
            stack.enter_context(_forward_of(self._core, lambda *_, **__: states))
            if embedding is not None:
                stack.enter_context(_forward_of(self._model.get_output_embeddings(), embedding))
            token_ids_1K = torch.zeros(1, rows_KD.shape[0], dtype=torch.long, device=rows_KD.device)
            return _logits_of(self._model(input_ids=token_ids_1K))[0]

    @torch.no_grad()
    def _measure(self, rows_KD: Tensor) -> None:
        """Find out which of the three kinds this head is."""
        embeddings = self._model.get_output_embeddings()
        if not isinstance(embeddings, nn.Linear) or type(embeddings).forward is not nn.Linear.forward:
            return
        vocabulary, width = embeddings.weight.shape
        try:
            features_KD = self.features(rows_KD)
            law = self._law(vocabulary, rows_KD.device)
        except (AssertionError, *FAILURES):
            return
        if law is not None and features_KD.shape[1] == width:
            self.is_linear, (self.scale, self.softcap) = True, law
            self._keeps_rows = torch.equal(features_KD, rows_KD)

    def _behind(self, raw_KV: Tensor) -> Tensor:
        """Logits that the model makes of given outputs of its output embedding."""
        rows_KD = torch.zeros(len(raw_KV), self._width, dtype=self.weight_VD.dtype, device=raw_KV.device)
        return self._run(rows_KD, lambda *_, **__: raw_KV[None])

    def _law(self, vocabulary: int, device: torch.device) -> tuple[float, float | None] | None:
        """Scale and soft cap of ``f(raw) = cap(scale * raw)``, if that is what the model does to every entry."""
        raw_KV = torch.stack([torch.full((vocabulary,), raw, dtype=torch.float64) for raw in (0.0, 1e-6, 1e9)])
        logits_KV = self._behind(raw_KV.to(device)).double()
        if logits_KV.shape != raw_KV.shape:
            return None
        zero_V, small_V, large_V = logits_KV
        scale, limit = (small_V[0] / 1e-6).item(), large_V[0].item()
        if not (math.isfinite(scale) and math.isfinite(limit) and scale > 0):
            return None
        scale = _round(scale)
        softcap = None if math.isclose(limit, scale * 1e9, rel_tol=1e-4) else _round(limit)
        raw_KV = torch.randn(8, vocabulary, dtype=torch.float64, device=device)
        raw_KV *= torch.logspace(-1, 2, 8, dtype=torch.float64, device=device)[:, None]
        expected_KV = raw_KV * scale
        if softcap is not None:
            expected_KV = torch.tanh(expected_KV / softcap) * softcap
        behaves = torch.allclose(self._behind(raw_KV).double(), expected_KV, rtol=1e-5, atol=1e-6)
        return (scale, softcap) if behaves and bool((zero_V == 0).all()) else None


def take_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part of a causal model that plain ``AutoModel`` would load; raises UserError where there is none."""
    backbone = getattr(model, model.base_model_prefix or "-", None)
    if isinstance(backbone, PreTrainedModel) and backbone is not model:
        return backbone
    # A few classes carry the prefix of the multimodal model around them.
    children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    if len(children) != 1:
        raise UserError(
            f"model: {type(model).__name__} has no backbone apart from its head; choose another architecture"
        )
    return children[0]


def take_head(model: PreTrainedModel, *, trainable: bool = False) -> Head:
    """Take the head of a causal language model, frozen unless told otherwise, and prove it.

    The proof: on a few tokens, the head on the backbone's ``last_hidden_state`` gives the logits of the model itself.

    Parameters
    ----------
    model
        A model with a language-model head, before adapters are attached to its backbone.
    trainable
        Whether gradients reach the head's parameters (``Head.parameters()`` lists those that are not the backbone's).

    Raises
    ------
    UserError
        The model has no backbone apart from its head, or its logits are not a function of its last hidden states.
    """
    backbone = take_backbone(model)
    training = {module for module in model.modules() if module.training}
    model.eval()
    try:
        with torch.no_grad():
            head = _prove(model, backbone)
    finally:
        for module in training:
            module.training = True
    return head.train(trainable)


def _prove(model: PreTrainedModel, backbone: nn.Module) -> Head:
    """Run the model once, build the head from what was seen, and compare."""
    token_ids_BL = _plain_tokens(model)
    calls: list[tuple[nn.Module, Any]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(getattr(output, "last_hidden_state", None), Tensor):
            calls.append((module, output))

    hooks = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    refusal = (
        f"model: the logits of {type(model).__name__} are not a function of its last hidden states alone; "
        "choose another architecture"
    )
    try:
        logits_BLV = _logits_of(model(input_ids=token_ids_BL))
    except FAILURES as error:
        raise UserError(f"model: {type(model).__name__} does not run on token ids alone ({error})") from error
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise UserError(refusal)
    core, output = calls[-1]  # the outermost ends last
    states_BLD = output.last_hidden_state if core is backbone else backbone(input_ids=token_ids_BL).last_hidden_state
    rows_KD = states_BLD.reshape(-1, states_BLD.shape[-1])
    head = Head(model, core, type(output), rows_KD.shape[1])
    head._measure(rows_KD)
    expected_KV = logits_BLV.reshape(-1, logits_BLV.shape[-1]).float()
    if not _agrees(head, rows_KD, expected_KV):
        head.is_linear = False
        if not _agrees(head, rows_KD, expected_KV):
            raise UserError(refusal)
    return head


def _agrees(head: Head, rows_KD: Tensor, expected_KV: Tensor) -> bool:
    try:
        logits_KV = head(rows_KD).float()
    except FAILURES:
        return False
    if logits_KV.shape != expected_KV.shape:
        return False
    # Entries that a model rules out are the lowest number of some type, or minus infinity, on both sides.
    finite_KV = expected_KV > -1e4
    exact = rows_KD.dtype in (torch.float32, torch.float64)
    unit = expected_KV[finite_KV].abs().max().clamp(min=1e-3)
    difference = (logits_KV - expected_KV)[finite_KV].abs().max() / unit
    return bool(difference < (1e-5 if exact else 2e-2)) and bool((logits_KV[~finite_KV] < -1e4).all())


def _plain_tokens(model: PreTrainedModel) -> Tensor:
    """Choose a few token ids that no key of the configuration gives a meaning."""
    config = model.config.get_text_config(decoder=True)
    special: set[int] = set()
    for values in (model.config.to_dict(), config.to_dict()):
        for key, value in values.items():
            if "token" in key:
                special.update(entry for entry in (value if isinstance(value, list) else [value]) if type(entry) is int)
    device = next(model.parameters()).device
    plain = [token for token in range(config.vocab_size) if token not in special][-PROBE_TOKENS:]
    return torch.tensor([plain], device=device)


def _logits_of(output: Any) -> Tensor:
    logits = getattr(output, "logits", None)
    return output[0] if logits is None else logits


def _round(number: float) -> float:
    """Undo the last bits of a measurement: 0.062500000001 is 0.0625."""
    return float(f"{number:.6g}") if math.isclose(number, float(f"{number:.6g}"), rel_tol=1e-6) else number


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give one module another forward for a while."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
