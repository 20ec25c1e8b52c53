"""`head add`: a headless model is written as an ordinary one, whose own logits are those of the language model.

What flows: model and prior -> the way that its weights allow -> weights with temperature and prior in them -> folder,
opened again and compared with what it was made from.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from turncoder.artifact import save_language_model
from turncoder.config.heads import HeadConfig
from turncoder.config.keys import locate_model
from turncoder.config.stages import to_toml
from turncoder.data.tokenizer import load_tokenizer, tokenizer_files
from turncoder.disk import replace_folder
from turncoder.errors import UserError
from turncoder.model.backbone import (
    find_kind,
    load_language_model,
    load_model_config,
    read_record,
    resolve_model,
)
from turncoder.model.completion import choose_way, compare, find_norm, give_bias, put_prior, untie
from turncoder.model.heads import Head, take_backbone, take_head
from turncoder.model.prior import Prior, read_prior
from turncoder.plan import Plan
from turncoder.train.fitting import fit_prior
from turncoder.train.stage import tell_parents

__all__ = ["add_head", "plan_head"]

logger = logging.getLogger("turncoder")

EXACT = 1e-4  # nats
WAYS = {
    "bias": "log p goes into the bias of its output embedding, exactly",
    "fold": "log p is folded into the weights of its head, exactly (the last norm is a LayerNorm)",
    "fit": "no weight of this architecture takes log p exactly ({norm} before the head): an untied head is fitted",
}


def add_head(config: HeadConfig) -> Path:
    """Write a headless model with its head; the folder is written under another name first.

    Parameters
    ----------
    config
        All that is to be known.

    Returns
    -------
    Path
        The folder, which ``AutoModelForCausalLM`` or ``AutoModelForMaskedLM`` opens.

    Raises
    ------
    UserError
        The model is not headless, has its head already, the folder exists, or a fit has no text.
    """
    out, prior, model = _open(config)
    name, where = resolve_model(str(config.model_name_or_path)), locate_model(config)
    original = copy.deepcopy(model)
    target = take_head(original)
    _complete(target, prior, config)
    bias_V = prior.bias_V if config.prior else torch.zeros(len(prior.counts_V))
    if config.prior:
        model = give_bias(model)
    way = choose_way(model, take_head(model)) if config.prior else "none"
    if config.untied:
        untie(model)
    told: dict[str, Any] = {"way": way}
    if way in WAYS:
        logger.info("%s", _tell_way(way, model))
    if way == "fit":
        told |= fit_prior(config, model, target, bias_V, prior.temperature)
    else:
        put_prior(model, bias_V, prior.temperature)
    told["tied"] = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if not told["tied"]:
        logger.info("the head is untied: %s parameters more", f"{model.get_output_embeddings().weight.numel():,}")
    record = read_record(name, **where)
    with replace_folder(out) as made:
        save_language_model(
            model,
            made,
            tokenizer=load_tokenizer(name, **where),
            tokenizer_files=tokenizer_files(name, revision=config.model_revision, cache_dir=config.cache_dir),
            prior=None,
            record={
                **{key: value for key, value in record.items() if key != "prior"},
                "head": {**told, "prior": config.prior, **prior.describe()},
                "parents": tell_parents(str(config.model_name_or_path)),
            },
        )
        difference = compare(_load(config, str(made), revision="main"), target, take_backbone(original))
        exact = way != "fit" and target.softcap is None  # a cap stands behind what a temperature divides
        if exact and not difference < EXACT:
            raise UserError(
                f"{config.model_name_or_path}: with log p in its weights {type(model).__name__} is off by "
                f"{difference:.2g} nats: it computes something after its head that is not known here; use --no-prior, "
                "or the run as it is (mntp, turn and evaluate language add log p themselves)"
            )
    return out


def plan_head(config: HeadConfig) -> Plan:
    """Plan what `add_head` would do.

    Raises
    ------
    UserError
        Whatever `add_head` would refuse, but what is wrong with the text of a fit.
    """
    out, _, model = _open(config)
    plan = Plan(to_toml(config))
    if config.prior:
        model = give_bias(model)
        way = choose_way(model, take_head(model))
        plan.assumptions.append(_tell_way(way, model))
        if way != "bias":
            untie(model)
    if config.untied:
        untie(model)
    plan.parameters = {"total": sum(one.numel() for one in model.parameters())}
    plan.disk = {"weights": sum(one.numel() * one.element_size() for one in model.parameters())}
    plan.files = [str(out / file) for file in ("model.safetensors", "config.json", "tokenizer files", "turncoder.json")]
    return plan


def _open(config: HeadConfig) -> tuple[Path, Prior, PreTrainedModel]:
    """Find out where to, what is lacking, and load the model."""
    out, name = Path(str(config.output_dir)), str(config.model_name_or_path)
    if out.exists() and not config.overwrite:
        raise UserError(f"--output {out} exists; choose another name, or use --overwrite to replace it")
    if out.exists() and (not (out / "config.json").exists() or out.resolve() == Path(resolve_model(name)).resolve()):
        raise UserError(f"--output {out} is no model folder, or MODEL itself, and is not replaced; choose another name")
    load_model_config(name, **locate_model(config))  # what is no model is not called one without a prior
    prior = read_prior(name, **locate_model(config))
    if prior is None:
        if read_record(name, **locate_model(config)).get("head"):
            raise UserError(f"{name} has its head already: its own logits are those of the language model")
        raise UserError(
            f"{name} is not headless (its turncoder.json tells of no prior), so its logits lack nothing; head add is "
            "for what turncoder pretrain left"
        )
    return out, prior, _load(config, name, revision=config.model_revision)


def _load(config: HeadConfig, name: str, *, revision: str) -> PreTrainedModel:
    where = {**locate_model(config), "revision": revision}
    return load_language_model(name, kind=find_kind(name, **where), **where)


def _complete(head: Head, prior: Prior, config: HeadConfig) -> None:
    """Make a head give what is wanted of the model that is written."""
    if config.prior:
        prior.complete(head)
    else:
        head.add_prior(torch.zeros(len(prior.counts_V)), prior.temperature)


def _tell_way(way: str, model: PreTrainedModel) -> str:
    norm = find_norm(model)
    return WAYS[way].format(norm=type(norm).__name__ if norm is not None else "no norm")
