"""``push_to_hub`` of a training: checked before the run starts, done by `publish` when it is done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from turncoder.config.publishing import PublishConfig
from turncoder.errors import UserError
from turncoder.publish.bundle import Bundle, follow_base
from turncoder.publish.provenance import find_licence
from turncoder.publish.upload import check_access, publish

__all__ = ["push"]

logger = logging.getLogger("turncoder")


def push(config: Any, train: Callable[[Any], Path]) -> Path:
    """Train, and publish the run.

    Parameters
    ----------
    config
        Of a stage whose ``training`` has ``push_to_hub``, ``hub_model_id`` and perhaps ``hub_private_repo`` (default:
        true) and ``hub_revision``.
    train
        Runs it.

    Returns
    -------
    Path
        The run folder.

    Raises
    ------
    UserError
        A repository that may not be written to, no licence that is known: both before the run starts; or what
        `publish` refuses, after it.
    """
    told, stage = config.training, getattr(config, "STAGE", "")
    if stage == "glue":
        raise UserError("push_to_hub: evaluate glue keeps no model that could be published; drop the key")
    wish = PublishConfig(
        folder=config.output_dir or "RUN",  # training says that it needs a name
        to=told["hub_model_id"],
        public=told.get("hub_private_repo") is False,
        revision=told.get("hub_revision") or "main",
    )
    again = f"turncoder publish {wish.folder} --to {wish.to}"
    state = PartialState(cpu=not torch.accelerator.is_available())  # as a run opens it: it is one for the process
    if state.is_main_process and not (Path(str(wish.folder)) / "run.json").exists():
        check_access(wish)
        try:
            find_licence(wish, _name_base(config), online=True)
        except UserError as error:
            raise UserError(f"push_to_hub: {error}: drop push_to_hub, and afterwards {again} --license ...") from None
    folder = train(config)
    if state.is_main_process:
        try:
            logger.info("published: %s", publish(wish))
        except UserError as error:
            raise UserError(f"the run is done, in {folder}, and not published: {error} ({again})") from error
    return folder


def _name_base(config: Any) -> Bundle:
    """Name what a run would be made from in the end, as far as that can be seen before it is."""
    name = config.model_name_or_path
    base = follow_base(name)
    revision = config.model_revision if base == name else "main"
    return Bundle("encoder", Path(config.output_dir or "."), base=base, base_revision=revision)
