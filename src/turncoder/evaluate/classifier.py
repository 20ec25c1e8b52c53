"""A trained tagger as transformers' own token classifier, which ``pipeline("token-classification")`` opens.

The classifier labels tokens, where the tagger labels words. They agree on words of one token; of several, the pipeline
averages probabilities (``aggregation_strategy="average"``) or takes the first (``"first"``).
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, PreTrainedModel

from turncoder.disk import replace_folder
from turncoder.evaluate.prediction import Head
from turncoder.evaluate.tagger import Tagger
from turncoder.train.features import LAST

__all__ = ["export_classifier"]

logger = logging.getLogger("turncoder")

NAMES = ("score", "classifier")
PROBE = "A state is read at each token of this sentence, and labelled."
MOST = 1e-4  # difference of logits, of their largest


def export_classifier(tagger: Tagger, folder: Path) -> bool:
    """Write the token classifier of a tagger with one task; say so where there can be none.

    Parameters
    ----------
    tagger
        Its backbone holds what was trained.
    folder
        To be written.

    Returns
    -------
    bool
        Whether it was written: the architecture has such a classifier, whose logits are those of the tagger.
    """
    reason = _refuse(tagger)
    if reason is None:
        head = next(head for head in tagger.heads if head.seed == tagger.best[head.task])
        model = _build(tagger, head)
        reason = model if isinstance(model, str) else _compare(tagger, head, model)
    if reason is not None:
        logger.warning("%s/ is not written: %s", folder.name, reason)
        return False
    assert isinstance(model, PreTrainedModel)
    with replace_folder(folder) as partial:
        model.save_pretrained(partial)
        tagger.encoder.tokenizer.save_pretrained(partial)
    return True


def _refuse(tagger: Tagger) -> str | None:
    if len(tagger.schemes) > 1:
        return "transformers' token classifier has one task, and this tagger several"
    head = tagger.heads[0]
    if head.reading != "same_token" or head.layers != (LAST,):
        return "transformers' token classifier reads the last state at a token itself (same_token, layer -1)"
    return None


def _build(tagger: Tagger, head: Head) -> PreTrainedModel | str:
    """Put backbone and head into the architecture's own classifier; or say why that cannot be done."""
    backbone = tagger.encoder.transformers_model
    assert isinstance(backbone, PreTrainedModel)
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        return f"transformers has no token classifier for {config.model_type}"
    config.id2label = dict(enumerate(head.labels))
    config.label2id = {name: number for number, name in enumerate(head.labels)}
    kind: Any = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]
    model: Any = kind._from_config(config, attn_implementation=backbone.config._attn_implementation)
    model = model.to(device=backbone.device, dtype=backbone.dtype).eval()
    classifier = next((getattr(model, name) for name in NAMES if hasattr(model, name)), None)
    if not isinstance(classifier, nn.Linear) or classifier.weight.shape != head.weight_CE.shape:
        return f"the classifier of {type(model).__name__} is no linear layer on the states"
    model.base_model.load_state_dict(backbone.state_dict(), strict=False)
    with torch.no_grad():
        classifier.weight.copy_(head.weight_CE)
        if classifier.bias is None:
            classifier.bias = nn.Parameter(torch.zeros_like(head.bias_C).to(classifier.weight))
        classifier.bias.copy_(head.bias_C)
    return model


@torch.no_grad()
def _compare(tagger: Tagger, head: Head, model: PreTrainedModel) -> str | None:
    """Say in how far a classifier is another one than the tagger; None where it is not."""
    backbone: Any = tagger.encoder.transformers_model
    inputs = tagger.encoder.tokenizer(PROBE, return_tensors="pt").to(backbone.device)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    states_LD = backbone(**inputs).last_hidden_state[0].float().cpu()
    wanted_LC = states_LD @ head.weight_CE.T + head.bias_C
    logits_LC = model(**inputs).logits[0].float().cpu()
    off = float((logits_LC - wanted_LC).abs().max() / wanted_LC.abs().max())
    if off > MOST:
        return f"{type(model).__name__} puts something between states and labels: its logits differ by {off:.2g}"
    return None
