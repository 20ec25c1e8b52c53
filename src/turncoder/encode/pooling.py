"""How the vectors of tokens become one: the names of poolings, and what each asks of a tokenizer."""

from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling
from transformers import PreTrainedTokenizerBase

from turncoder.errors import UserError
from turncoder.prompts import append_eos, ends_in_eos

__all__ = ["MODES", "POOLING", "fit_tokenizer", "name_pooling", "pools_first", "set_pooling"]

POOLING = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "eos_token": "lasttoken",
    "last_token": "lasttoken",
    "bos_token": "cls",
    "cls": "cls",
}
"""Our (and LLM2Vec's) names of poolings, and sentence-transformers'."""
MODES = {theirs: name for name, theirs in POOLING.items()}
"""The other way round."""


def pools_first(mode: str) -> bool:
    """Say whether a pooling of sentence-transformers takes the first token, which leaving a prompt out would move."""
    return mode == "cls"


def name_pooling(mode: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the pooling that makes an encoder of this mode and tokenizer, from a tokenizer that may add no EOS."""
    return "eos_token" if mode == POOLING["eos_token"] and ends_in_eos(tokenizer) else mode


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, pooling: str, ends: bool = True) -> None:
    """See that the token which a pooling takes is there.

    Raises
    ------
    UserError
        There is no such token.
    """
    if pooling == "eos_token" and ends:
        append_eos(tokenizer)
    if pooling == "bos_token" and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        raise UserError("pooling = 'bos_token': the tokenizer puts no BOS before a text; choose mean or last_token")


def set_pooling(encoder: SentenceTransformer, pooling: str) -> None:
    """Choose how an encoder pools; raises UserError where it has no pooling."""
    modules = [module for module in encoder if isinstance(module, Pooling)]
    if not modules:
        raise UserError(f"pooling = {pooling!r}: this encoder has no pooling to choose; leave the flag out")
    modules[0].pooling_mode = POOLING[pooling]
    modules[0].include_prompt = modules[0].include_prompt or pools_first(POOLING[pooling])
    modules[0].pooling_output_dimension = modules[0].embedding_dimension
