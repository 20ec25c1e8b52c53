"""Prompts: the same string in training, in encoding and in evaluation, and a number of tokens that is known.

A prompt goes before the text as it is. What pooling leaves out is counted in tokens, so the tokens of the prompt must
be the first tokens of prompt and text together; a prompt that ends in a newline, for example, keeps apart.
What stands around both (a chat template, an end of text) is here too.
"""

import json
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from turncoder.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Template",
    "append_eos",
    "check_prompt",
    "llm2vec_template",
    "mark_border",
    "read_instructions",
    "read_prompt_file",
]


class Template(NamedTuple):
    """What stands before and after a text, besides a prompt."""

    before: str
    after: str
    strips: bool
    """White space around prompt and text is dropped."""


def check_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str, texts: Iterable[str], limit: int) -> list[int]:
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

    Returns
    -------
    list of int
        The tokens of the prompt, special ones before it included.

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
                f"{text[:20]!r}, so it cannot be left out of the pooling; end it in a newline "
                "(in bash $'...\\n', as '...\\n' ends in two other characters; or in a config file)"
            )
    return ids


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


def read_instructions() -> dict[str, str]:
    """Read the instructions that LLM2Vec gives to tasks of mteb."""
    return json.loads((files("turncoder") / "resources" / "llm2vec_tasks.json").read_text(encoding="utf8"))["tasks"]


def read_prompt_file(name: str) -> dict[str, Any]:
    """Read prompts by tasks of mteb or by their types, such as ``STS``.

    Parameters
    ----------
    name
        A JSON file, or ``llm2vec`` for `read_instructions`. A string is an instruction: it stands, with a space, before
        queries and other texts, and not before documents, as LLM2Vec has it. ``{"query": ..., "document": ...}`` are
        prompts as they are; what is neither query nor document has that of queries.

    Raises
    ------
    UserError
        No such file, no JSON, or something else in it.
    """
    if name == "llm2vec":
        return dict(read_instructions())
    try:
        table = json.loads(Path(name).expanduser().read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise UserError(f"prompt_file = {name!r} cannot be read ({error}); give a JSON file, or llm2vec") from error
    if not isinstance(table, dict):
        raise UserError(f'prompt_file = {name!r} holds no object {{"TASK": "PROMPT"}}, by names or types of tasks')
    for task, entry in table.items():
        sides = entry if isinstance(entry, dict) else {"query": entry}
        if not set(sides) <= {"query", "document"} or not all(isinstance(one, str) for one in sides.values()):
            raise UserError(
                f'prompt_file = {name!r}: {task!r} must be a string, or {{"query": "...", "document": "..."}}'
            )
    return table


def ends_in_eos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Say whether a tokenizer ends every text in its end-of-text token."""
    return tokenizer.eos_token is not None and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id


def append_eos(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Have a tokenizer end every text in its end-of-text token, if it does not do so already.

    Raises
    ------
    UserError
        It has no such token, or is no fast tokenizer.
    """
    eos = tokenizer.eos_token
    if ends_in_eos(tokenizer):
        return
    if eos is None or getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError("pooling = 'eos_token': the tokenizer has no end-of-text token; choose mean or last_token")

    def end(template: dict[str, Any]) -> None:
        template["single"].append({"SpecialToken": {"id": eos, "type_id": 0}})
        template["pair"].append({"SpecialToken": {"id": eos, "type_id": 1}})

    _change_template(tokenizer, end, single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1")


def mark_border(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Have a tokenizer put its end-of-text token between two texts, if it puts nothing there.

    Returns
    -------
    bool
        Whether something is there; not so where the tokenizer has no such token.
    """
    if not tokenizer.is_fast:  # which go by the rules of their architecture
        return True
    sides = tokenizer("a", "b").sequence_ids(0)
    if None in sides[sides.index(0) : sides.index(1)]:
        return True
    eos = tokenizer.eos_token
    if eos is None:
        return False

    def part(template: dict[str, Any]) -> None:
        first = next(number for number, piece in enumerate(template["pair"]) if "Sequence" in piece)
        template["pair"].insert(first + 1, {"SpecialToken": {"id": eos, "type_id": 0}})

    _change_template(tokenizer, part, single="$A", pair=f"$A {eos} $B:1")
    return True


def _change_template(tokenizer: Any, change: Callable[[dict[str, Any]], None], *, single: str, pair: str) -> None:
    """Change the template of a tokenizer, which then has its end-of-text token; ``single`` and ``pair`` if it has none.

    The end-of-text token must be there.
    """
    from tokenizers import Tokenizer, processors

    eos, number, backend = tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    steps = state["post_processor"]["processors"] if _kind(state) == "Sequence" else [state["post_processor"]]
    template = next((step for step in steps if step and step["type"] == "TemplateProcessing"), None)
    if template is None:
        own = processors.TemplateProcessing(single=single, pair=pair, special_tokens=[(eos, number)])
        before = backend.post_processor
        backend.post_processor = own if before is None else processors.Sequence([before, own])
        return
    template["special_tokens"][eos] = {"id": eos, "ids": [number], "tokens": [eos]}
    change(template)
    backend.post_processor = Tokenizer.from_str(json.dumps(state)).post_processor


def _kind(state: dict[str, Any]) -> str | None:
    return (state["post_processor"] or {}).get("type")
