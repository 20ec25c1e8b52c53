"""What is put on the Hub, where, and what is said of it: the keys of `publish`.

Importing this module imports neither torch nor transformers.
"""

import re
from dataclasses import dataclass
from typing import Literal

from turncoder.config.values import set_types
from turncoder.errors import UserError

__all__ = ["PublishConfig"]

REPOSITORY = r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*"
"""OWNER/NAME; the hub's own rules are a little narrower, and said by itself."""


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """A run or a model folder to the Hub, with a model card; private unless --public says otherwise.

    The same command again sends what is missing or has changed.
    """

    folder: str | None = None
    """FOLDER: a run (mntp, simcse, supervised, turn, words, pretrain, head finetune), or a model folder."""
    to: str | None = None
    """Repository: OWNER/NAME; created if it does not exist."""
    public: bool = False
    """Make the repository public."""
    merged: bool = False
    """The whole model; default: where the run has model/."""
    adapter_only: bool = False
    """The adapter alone (a chain of them as one), which needs its base model; default: where there is no model/."""
    revision: str = "main"
    """Branch; created from main if it does not exist."""
    commit_message: str | None = None
    """Message of the commit; default: what was uploaded."""
    license: str | None = None
    """Licence of the model, as the hub names it (apache-2.0, cc-by-4.0, other, ...); default: the base model's."""
    license_name: str | None = None
    """With license = other: its name."""
    license_link: str | None = None
    """With license = other: link to its text."""
    data_license: str | None = None
    """Licence of the training data; default: what the card of a data set on the hub says."""
    language: tuple[str, ...] = ()
    """Codes of the model's languages (en, bg, ...); default: what the card of the data set says."""
    base_model: str | None = None
    """Hub id of the base model, where it was trained on a copy in a folder."""
    results: tuple[str, ...] = ()
    """Runs that scored this model (words, evaluate ...): their tables go into the card."""
    card: Literal["keep", "replace"] | None = None
    """If the repository has a README.md that publish did not write: keep it, or replace it."""
    dry_run: bool = False
    """Print files, card and repository; send nothing and ask nothing of the network."""

    def __post_init__(self) -> None:
        """Check what can be checked without opening anything.

        Raises
        ------
        UserError
            One line that names the keys, the value and the remedy.
        """
        set_types(self)
        if not self.folder:
            raise UserError("publish needs a FOLDER: turncoder publish RUN --to OWNER/NAME")
        if not self.to:
            raise UserError("--to is missing: the repository, OWNER/NAME")
        for name, value in (("to", self.to), ("base_model", self.base_model)):
            if value and not (
                re.fullmatch(REPOSITORY, value) and len(value) <= 96 and not re.search(r"\.\.|--", value)
            ):
                raise UserError(
                    f"{name} = {value!r} is no repository: OWNER/NAME, of letters, digits, '-', '_' and '.', without "
                    "'--' and '..', 96 at most"
                )
        if self.merged and self.adapter_only:
            raise UserError("merged and adapter_only are both on; keep one")
        if (self.license_name or self.license_link) and self.license != "other":
            raise UserError(f"license_name and license_link go with license = other, not {self.license!r}")
        if self.license == "other" and not self.license_name:
            raise UserError("license = 'other' needs its name: --license_name")
