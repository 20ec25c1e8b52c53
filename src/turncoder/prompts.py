"""Prompts: the same string in training, in encoding and in evaluation, and a number of tokens that is known.

A prompt goes before the text as it is. What pooling leaves out is counted in tokens, so the tokens of the prompt must
be the first tokens of prompt and text together; a prompt that ends in a newline, for example, keeps apart.
"""

import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from turncoder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Template", "check_prompt", "llm2vec_template"]


class Template(NamedTuple):
    """What stands before and after a text, besides a prompt."""

    before: str
    after: str
    strips: bool
    """White space around prompt and text is dropped."""


def check_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str, texts: Iterable[str], limit: int) -> None:
    """See that the tokens of a prompt are the first tokens of prompt and text, and leave room for a text.

    Parameters
    ----------
    tokenizer
        With its special tokens.
    prompt
        As it stands before each text.
    texts
        Some real ones.
    limit
        Most tokens of prompt and text together.

    Raises
    ------
    UserError
        They are not (tokens were merged across the border), or there is no room.
    """
    special = set(tokenizer.all_special_ids)
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    while ids and ids[-1] in special:
        ids = ids[:-1]
    if len(ids) >= limit:
        raise UserError(
            f"the prompt has {len(ids)} tokens and max_seq_length is {limit}: no token of a text would be seen; "
            "shorten the prompt or raise max_seq_length"
        )
    for text in texts:
        if text.strip() and tokenizer(prompt + text, verbose=False)["input_ids"][: len(ids)] != ids:
            raise UserError(
                f"the prompt {prompt!r} does not stay apart from the text: its last characters share a token with "
                f"{text[:20]!r}, so it cannot be left out of the pooling; end it in a newline"
            )


@cache
def _table() -> dict[str, dict]:
    return json.loads((files("turncoder") / "resources" / "llm2vec.json").read_text(encoding="utf8"))


def llm2vec_template(name: str, model_type: str, pooling: str) -> Template:
    """Return what LLM2Vec puts around a text: a chat template by the exact name of some models, an end by pooling.

    Parameters
    ----------
    name
        The model's ``_name_or_path``.
    model_type
        Of its configuration.
    pooling
        LLM2Vec's name; ``eos_token`` writes the end of a text as text.
    """
    table = _table()
    before, after = table["templates"].get(name, ("", ""))
    ends = table["ends"]
    end = ends.get(name, ends.get(model_type, "")) if pooling == "eos_token" else ""
    return Template(before, after + end, bool(before or end))
