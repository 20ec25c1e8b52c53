"""Adapters that were trained one on top of the other, as one adapter.

A stage that starts from the merged result of the stage before adds its own difference to the same weights:
W + s1 B1 A1 + s2 B2 A2 = W + [s1 B1, s2 B2] [A1; A2], which is one adapter whose rank is the sum of the ranks. Alone,
the last of them would belong to a model that nobody else has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import load_peft_weights

from turncoder.errors import UserError

__all__ = ["join_adapters"]

A, B = ".lora_A.weight", ".lora_B.weight"


def join_adapters(folders: list[Path]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Join two adapters of turncoder or more, the first trained first.

    Parameters
    ----------
    folders
        In peft's format.

    Returns
    -------
    tuple of dict and dict
        What its configuration has otherwise than the last one's, and the weights (float32) of one adapter.

    Raises
    ------
    UserError
        One of them is more than matrices A and B, or of another form.
    """
    configs = [LoraConfig.from_pretrained(str(folder)) for folder in folders]
    weights = [load_peft_weights(str(folder), device="cpu") for folder in folders]
    for folder, config, tensors in zip(folders, configs, weights, strict=True):
        odd = [name for name in tensors if not name.endswith((A, B))]
        plain = not (config.use_dora or config.rank_pattern or config.alpha_pattern or config.modules_to_save)
        if odd or not plain or config.fan_in_fan_out != configs[0].fan_in_fan_out:
            raise UserError(f"adapter_only: {folder} cannot be joined with the others; publish the run with --merged")
    joined: dict[str, torch.Tensor] = {}
    for name in sorted({name.removesuffix(A) for tensors in weights for name in tensors if name.endswith(A)}):
        parts_A, parts_B = [], []
        like = next(tensors for tensors in weights if name + A in tensors)
        for config, tensors in zip(configs, weights, strict=True):
            scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
            if name + A in tensors:
                parts_A.append(tensors[name + A].float())
                parts_B.append(tensors[name + B].float() * scale)
            else:  # this one left the module as it was
                parts_A.append(torch.zeros(config.r, like[name + A].shape[1]))
                parts_B.append(torch.zeros(like[name + B].shape[0], config.r))
        joined[name + A], joined[name + B] = torch.cat(parts_A), torch.cat(parts_B, dim=1)
    rank, targets = sum(config.r for config in configs), set()
    for config in configs:
        if isinstance(config.target_modules, str):
            raise UserError("adapter_only: adapters on modules named by a pattern cannot be joined; use --merged")
        targets |= set(config.target_modules or ())
    own = {"r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": sorted(targets)}
    return own, joined
