"""The tokenizer: load it, check it, choose a padding id and a mask id, and leave its files as they are."""

import copy
import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder.errors import UserError, first_line
from turncoder.prompts import append_eos

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "check_vocabulary",
    "digest_tokenizer",
    "end_documents",
    "find_padding",
    "load_tokenizer",
    "mask_token_id",
    "pad_token_id",
    "special_ids",
    "take_backend",
    "tokenizer_files",
]

logger = logging.getLogger("turncoder")

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
)
OTHER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "emoji.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*",
    "tokenization_*.py",
)
# How the makers of models name the tokens that they keep in reserve, the likeliest first.
RESERVED = (
    "<mask>",
    "[MASK]",
    "<|mask|>",
    "<unused",
    "[unused",
    "<|reserved_special_token_",
    "<|reserved_",
    "<SPECIAL_",
    "<|padding|>",  # of GPT-NeoX, which packs
)


def load_tokenizer(
    name: str | Path, *, revision: str = "main", cache_dir: str | None = None, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load a tokenizer from a folder or the hub.

    Nothing about it is changed but the side of padding (right) of this instance.

    Parameters
    ----------
    name
        A folder or a hub id.
    revision, cache_dir, trust_remote_code
        As in ``from_pretrained``.

    Raises
    ------
    UserError
        The folder or repository has no tokenizer, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    here = folder.exists()
    if here:
        tokenizer_files(folder)
    where: dict[str, Any] = {"local_files_only": True} if here else {"revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder if here else name), cache_dir=cache_dir, trust_remote_code=trust_remote_code, **where
        )
    except Exception as error:
        raise UserError(
            f"tokenizer_name: {str(name)!r} cannot be loaded ({first_line(error)}); give a folder with a "
            "tokenizer.json, or a hub id"
        ) from error
    if not here and tokenizer.vocab_files_names:  # from a config alone transformers makes one without a vocabulary
        tokenizer_files(name, revision=revision, cache_dir=cache_dir)
    tokenizer.padding_side = "right"
    return tokenizer


def tokenizer_files(name: str | Path, *, revision: str = "main", cache_dir: str | None = None) -> list[Path]:
    """Find the tokenizer's original files, to be copied byte for byte.

    Parameters
    ----------
    name
        A folder, or a hub id that has been loaded before (its files are taken from the hub's cache).
    revision, cache_dir
        As they were for :func:`load_tokenizer`.

    Returns
    -------
    list of pathlib.Path
        Existing files, sorted.

    Raises
    ------
    UserError
        There is no tokenizer.
    """
    folder = Path(name).expanduser()
    if not folder.exists():
        from huggingface_hub import snapshot_download

        patterns = [*VOCABULARY_FILES, *OTHER_FILES]
        try:
            folder = Path(
                snapshot_download(
                    str(name),
                    revision=revision,
                    cache_dir=cache_dir,
                    allow_patterns=patterns,
                    local_files_only=True,
                )
            )
        except Exception as error:
            raise UserError(
                f"tokenizer_name: {str(name)!r} is neither a folder nor in the hub's cache ({first_line(error)})"
            ) from error
    if not any(path for pattern in VOCABULARY_FILES for path in folder.glob(pattern)):
        raise UserError(
            f"tokenizer_name: {name} has no tokenizer (no tokenizer.json, tokenizer.model or vocab file); "
            "put the model's tokenizer files there, or name them with tokenizer_name"
        )
    return sorted({path for pattern in (*VOCABULARY_FILES, *OTHER_FILES) for path in folder.glob(pattern)})


def pad_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Choose what fills the end of short rows: the pad token, else unknown, else end of text, else 0.

    Nothing attends to it and nothing predicts it, so any id of the vocabulary will do; the tokenizer stays as it is.
    """
    choices = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id, 0)
    return next(int(choice) for choice in choices if choice is not None)


def find_padding(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Find the token that only ever fills rows; None where it means something else too."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.mask_token_id)
    return None if tokenizer.pad_token_id in others else tokenizer.pad_token_id


def mask_token_id(tokenizer: "PreTrainedTokenizerBase", mask_token_type: str = "blank") -> int:
    """Find the id that stands for a masked token, without changing the tokenizer.

    Parameters
    ----------
    tokenizer
        As loaded.
    mask_token_type
        ``"blank"``: the token ``_``; ``"eos"``: the end-of-text token; ``"mask"``: a reserved token that no text holds;
        anything else: that very token of the vocabulary. As in LLM2Vec, a mask token that the tokenizer already has
        comes before the first three.

    Raises
    ------
    UserError
        There is no such token; the message names what there is.
    """
    if mask_token_type not in ("blank", "eos", "mask"):
        return _literal(tokenizer, mask_token_type)
    if tokenizer.mask_token_id is not None:
        if mask_token_type == "eos":
            logger.warning("mask_token_type: the tokenizer has a mask token, %r; it is used", tokenizer.mask_token)
        return int(tokenizer.mask_token_id)
    if mask_token_type == "blank":
        return _blank(tokenizer)
    if mask_token_type == "eos":
        if tokenizer.eos_token_id is None:
            raise UserError(f"mask_token_type 'eos': the tokenizer has no end-of-text token; {_advice(tokenizer)}")
        return int(tokenizer.eos_token_id)
    reserved = _reserved(tokenizer)
    if reserved is None:
        raise UserError(
            "mask_token_type 'mask': the tokenizer has no mask token and none in reserve, and the vocabulary is not "
            f"enlarged behind your back; {_advice(tokenizer)}"
        )
    return reserved


def _blank(tokenizer: "PreTrainedTokenizerBase") -> int:
    token = tokenizer.get_vocab().get("_")
    if token is not None:
        return int(token)
    if tokenizer.unk_token_id is not None:  # what LLM2Vec's `tokenizer.mask_token = "_"` comes to here
        logger.warning(
            "mask_token_type 'blank': '_' is no token of this vocabulary; %r (id %d) masks, as it does in LLM2Vec",
            tokenizer.unk_token,
            tokenizer.unk_token_id,
        )
        return int(tokenizer.unk_token_id)
    raise UserError(f"mask_token_type 'blank': '_' is no token of this vocabulary; {_advice(tokenizer)}")


def _literal(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    found = tokenizer.get_vocab().get(token)
    if found is None:
        pieces = tokenizer.tokenize(token)
        raise UserError(
            f"mask_token_type {token!r} is no token of this vocabulary (it becomes {pieces}); {_advice(tokenizer)}"
        )
    return int(found)


def _reserved(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    for prefix in RESERVED:
        for token, number in vocabulary:
            if token.startswith(prefix):
                return int(number)
    return None


def _advice(tokenizer: "PreTrainedTokenizerBase") -> str:
    names = ["blank"] if tokenizer.get_vocab().get("_") is not None or tokenizer.unk_token_id is not None else []
    names += ["eos"] if tokenizer.eos_token_id is not None else []
    names += ["mask"] if _reserved(tokenizer) is not None else []
    return f"choose {', '.join([*names, 'or a token of the vocabulary by its text'])}"


def special_ids(tokenizer: "PreTrainedTokenizerBase", mask_id: int, *, as_llm2vec: bool = False) -> tuple[int, ...]:
    """Say which tokens are never masked: the special ones.

    An ordinary token that masks (``_``) is not one of them, even when a tokenizer saved by LLM2Vec declares it so: real
    underscores stay maskable. ``as_llm2vec`` keeps LLM2Vec's reading, where the mask token is special.

    Parameters
    ----------
    tokenizer
        As loaded.
    mask_id
        From :func:`mask_token_id`.
    as_llm2vec
        Count the mask token among the special ones.

    Returns
    -------
    tuple of int
        Sorted ids.
    """
    ids = set(tokenizer.all_special_ids)
    if as_llm2vec:
        return tuple(sorted(ids | {mask_id}))
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    if mask_id not in roles:
        ids.discard(mask_id)
    return tuple(sorted(ids))


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", vocab_size: int) -> None:
    """Refuse a tokenizer that knows more tokens than the model has embeddings.

    Special tokens without a role are let pass, with a notice, for texts do not hold them: small models of Gemma 3 have
    a token for images, and no embedding for it.

    Raises
    ------
    UserError
        It has any other id that is not below ``vocab_size``.
    """
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= vocab_size}
    if not beyond:
        return
    last = f"the last is {beyond[max(beyond)]!r}, id {max(beyond)}"
    added = tokenizer.added_tokens_decoder
    roles = {getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep")}
    if all(number in added and added[number].special and number not in roles for number in beyond):
        logger.warning("tokenizer_name: the model has no embedding for %d special tokens (%s)", len(beyond), last)
        return
    raise UserError(
        f"tokenizer_name: the tokenizer has {len(beyond)} tokens beyond the model's {vocab_size} embeddings ({last}); "
        "give the tokenizer that belongs to the model"
    )


def take_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """Give the Rust tokenizer, without truncation and padding (which calls leave behind), or None if there is none."""
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or (backend.truncation is None and backend.padding is None):
        return backend
    backend = Tokenizer.from_str(backend.to_str())  # a copy, for the original is its owner's
    backend.no_truncation()
    backend.no_padding()
    return backend


def digest_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Hash what decides how a text is tokenised."""
    backend = take_backend(tokenizer)
    if backend is not None:
        return hashlib.sha256(backend.to_str().encode()).hexdigest()
    import transformers

    place = ("name_or_path", "is_local", "local_files_only")  # where it lies, as its files
    settings = {
        key: str(value)
        for key, value in sorted(tokenizer.init_kwargs.items())
        if key not in place and not key.endswith("_file")
    }
    state = [type(tokenizer).__name__, transformers.__version__, settings, sorted(tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def end_documents(tokenizer: "PreTrainedTokenizerBase", always: bool | None = None) -> "PreTrainedTokenizerBase":
    """Give a tokenizer that puts the end-of-text token after each text.

    Parameters
    ----------
    tokenizer
        Stays as it is; what is given back is a copy where it has to be another.
    always
        True: whatever the tokenizer puts around a text by itself; False: never; None: unless it ends a text itself.

    Raises
    ------
    UserError
        There is no such token, or the tokenizer is one of the slow ones.
    """
    ids = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    ends = ids[-1] != bare[-1] and ids[-1] in tokenizer.all_special_ids
    if always is False or (always is None and ends) or ids[-1] == tokenizer.eos_token_id:
        return tokenizer
    if tokenizer.eos_token_id is None:
        if always is None:
            if ids != bare:
                return tokenizer
            logger.warning("append_eos: the tokenizer has no end-of-text token; documents follow each other bare")
            return tokenizer
        raise UserError("append_eos: the tokenizer has no end-of-text token; drop the key")
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            "append_eos: this tokenizer has no fast version (tokenizer.json), which is needed to put an end-of-text "
            "token after each text; add --no-append_eos"
        )
    copied = copy.deepcopy(tokenizer)
    append_eos(copied)
    return copied
