"""A causal language model, opened, proven to be one, and as lm-eval asks it; needs the extra ``language``.

Tensor names: B batch, L length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from turncoder.config.keys import locate_model
from turncoder.config.language import LanguageConfig
from turncoder.data.tokenizer import check_vocabulary, load_tokenizer
from turncoder.encode.encoder import check_flags
from turncoder.errors import UserError
from turncoder.evaluate.taskruns import hushed
from turncoder.model.backbone import count_embeddings, load_language_model, load_model_config, resolve_model
from turncoder.model.conversion import is_converted
from turncoder.model.influence import look_around
from turncoder.model.prior import Prior, read_prior

__all__ = ["CausalModel", "open_model"]

LARGEST_BATCH, LOGITS_BYTES = 32, 2**30
"""Where no batch size is given."""
REMEDY = "name a causal language model, such as the decoder that it was made of"


class CausalModel(HFLM):
    """lm-eval's own wrapper, given a model that is open, with three things of it mended.

    - A text whose likelihood is wanted from its beginning stands after one beginning token. lm-eval puts one there
      itself and lets the tokenizer put another, which is then scored.
    - A tokenizer that ends every text with a token would have it between context and continuation; it is left away.
    - What does not fit the model is an error that says so, or, cut off at the left, counted.

    Attributes
    ----------
    cut
        Requests so far whose context was cut off at the left.
    advance
        Called with a number of rows when they have gone through the model.
    prior
        What a headless model was completed with.
    """

    add_bos_token: bool | None

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer names neither a bos_token nor an eos_token, one of which stands before a text; name one "
                "in its tokenizer_config.json"
            )
        plain = tokenizer.encode("a", add_special_tokens=False)
        ends = bool(plain) and tokenizer.encode("a")[-1] != plain[-1]
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype=torch.float32,  # also of a model in half precision
            add_bos_token=False if ends else None,
        )
        self.cut = 0
        self.advance: Callable[[int], None] = lambda rows: None
        self.prior: Prior | None = None

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, each after one beginning token."""
        kept, self.add_bos_token = self.add_bos_token, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        finally:
            self.add_bos_token = kept

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        for _, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a text of {len(continuation):,} tokens is to be scored at once, and the model reads "
                    f"{self.max_length:,} (max_seq_length); shorten it"
                )
            self.cut += len(context) + len(continuation) > self.max_length + 1
        return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits_BLV = super()._model_call(inps, *args, **kwargs)
        self.advance(len(inps))
        return logits_BLV


def open_model(config: LanguageConfig) -> CausalModel:
    """Open the model as lm-eval asks it.

    Raises
    ------
    UserError
        A model that cannot be opened, that predicts no next token, or that sees the token that it should predict.
    """
    assert config.model_name_or_path is not None
    name, where = config.model_name_or_path, locate_model(config)
    check_flags(None, config.dtype, config.device, None)
    _check_kind(name, load_model_config(name, **where), config.max_seq_length)
    model = load_language_model(name, **where, dtype=config.dtype, attn_implementation=config.attn_implementation)
    tokenizer = load_tokenizer(resolve_model(name), **where)
    check_vocabulary(tokenizer, count_embeddings(model))
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    torch.nn.Module.to(model, torch.device(config.device or accelerator or "cpu"))
    if look_around(model)[1]:
        raise UserError(f"model_name_or_path: {name} sees the tokens that it should predict; {REMEDY}")
    prior = read_prior(resolve_model(name), **where)
    if prior is not None:
        _complete(model, prior)
    with hushed():
        opened = CausalModel(model, tokenizer, batch_size=config.batch_size or 1, max_length=config.max_seq_length)
    if config.batch_size is None:
        fitting = LOGITS_BYTES // (4 * opened.max_length * count_embeddings(model))
        opened.batch_size_per_gpu = min(max(fitting, 1), LARGEST_BATCH)
    opened.prior = prior
    return opened


def _check_kind(name: str, described: PretrainedConfig, length: int | None) -> None:
    said = f"model_name_or_path: {name} is"
    if described.is_encoder_decoder:
        raise UserError(f"{said} an encoder-decoder; {REMEDY}")
    if any("ForMaskedLM" in architecture for architecture in described.architectures or ()):
        raise UserError(f"{said} a masked language model, which gives a text no likelihood; {REMEDY}")
    if is_converted(described):
        raise UserError(f"{said} a bidirectional encoder, which sees the tokens that it should predict; {REMEDY}")
    positions = getattr(described.get_text_config(decoder=True), "max_position_embeddings", None)
    if length is not None and positions is not None and length > positions:
        raise UserError(f"max_seq_length = {length:,}: {name} reads at most {positions:,} tokens")


def _complete(model: PreTrainedModel, prior: Prior) -> None:
    """Make a headless model give the logits of the language model, in whatever calls it."""
    bias_V = prior.bias_V.to(model.device)

    def complete(_: torch.nn.Module, __: Any, output: Any) -> Any:
        output.logits = output.logits / prior.temperature + bias_V
        return output

    model.register_forward_hook(complete)
