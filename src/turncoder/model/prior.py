"""The unigram prior of a headless model: what its contrast with in-batch negatives leaves out.

Contrastive weight tying learns ``h E_y / T = log p(y | context) - (1 - tau) log p(y) + const`` (see
``turncoder.objectives.cwt``), so that its logits are ``h E^T / T + (1 - tau) log p``. Beside its weights lies
``unigram.safetensors``: how often each token id was a target in training; its ``turncoder.json`` has the key ``prior``:
the temperature and ``tau``.

Legend: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from turncoder.errors import UserError
from turncoder.model.backbone import find_file, read_record, resolve_model
from turncoder.model.heads import Head

__all__ = ["COUNTS_FILE", "Prior", "read_prior"]

COUNTS_FILE = "unigram.safetensors"


@dataclass(frozen=True)
class Prior:
    """How often each token id was a target, and how a model was trained on it.

    Attributes
    ----------
    counts_V
        int64.
    temperature, tau
        Of the contrast.
    """

    counts_V: Tensor
    temperature: float = 1.0
    tau: float = 0.0

    @property
    def log_p_V(self) -> Tensor:
        """The logarithm of the unigram distribution, in float32; one is added to each count, so that none is 0."""
        counts_V = self.counts_V.double() + 1
        return (counts_V / counts_V.sum()).log().float()

    @property
    def bias_V(self) -> Tensor:
        """What the logits lack."""
        return (1 - self.tau) * self.log_p_V

    def complete(self, head: Head) -> Head:
        """Make a head give the logits of the language model: with temperature and prior."""
        return head.add_prior(self.bias_V, self.temperature)

    def describe(self) -> dict[str, Any]:
        """Give what ``turncoder.json`` says of it."""
        return {"temperature": self.temperature, "tau": self.tau}

    def save(self, folder: Path) -> None:
        """Write the counts into the folder of a model."""
        save_file({"counts": self.counts_V.long().cpu().contiguous()}, folder / COUNTS_FILE)


def read_prior(name: str, *, revision: str = "main", cache_dir: str | None = None, **_: Any) -> Prior | None:
    """Find the prior that the logits of a model lack; None for models that lack none.

    Parameters
    ----------
    name
        The folder of a model, a run, or a hub id.

    Raises
    ------
    UserError
        ``turncoder.json`` tells of a prior, and its file is missing.
    """
    name = resolve_model(name)
    where: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
    told = read_record(name, **where).get("prior")
    if not told:
        return None
    path = find_file(name, COUNTS_FILE, **where)
    if path is None:
        raise UserError(f"model_name_or_path: {name} has no {COUNTS_FILE}, which its logits need; copy it there too")
    return Prior(load_file(path)["counts"], **told)
