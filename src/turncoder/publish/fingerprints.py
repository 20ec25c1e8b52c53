"""Whether scores are those of the model that is published: of its weights, and as its folder opens."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from turncoder.config.keys import OpenKeys
from turncoder.config.language import LanguageConfig
from turncoder.errors import UserError
from turncoder.model.source import read_json

__all__ = ["check_scores"]

Digest = Callable[[Path, tuple[tuple[str, Any], ...]], str]

SAME = ("allow_partial", "dtype", "attn_implementation", "cache_dir", "trust_remote_code")
"""Keys under which a model is the same one; a card tells the dtype."""
SETTINGS = tuple(
    field.name for field in fields(OpenKeys) if not field.name.startswith("model_") and field.name not in SAME
)
"""Keys under which an encoder is another one than its folder says."""


def check_scores(scored: Iterable[tuple[Path, Path]]) -> None:
    """Check that runs scored the model that is here now, by the fingerprint that each left of it.

    Parameters
    ----------
    scored
        Runs of `evaluate` or `words`, each with its model, or that one's run; what trained heads on it has no
        fingerprint, and is asked when the model was trained.

    Raises
    ------
    UserError
        The weights are others, or a run opened them otherwise than they are opened by those who get them.
    """
    sentences, language = cache(_digest_sentences), cache(_digest_language)  # one model, which may be large
    for folder, place in scored:
        _check_run(folder, place, sentences, language)


def _check_run(folder: Path, place: Path, sentences: Digest, language: Digest) -> None:
    record, results = read_json(folder / "run.json"), folder / "results.json"
    config = record["config"]
    fingerprint = (read_json(results).get("model") or {}).get("fingerprint") if results.exists() else None
    if adapters := config.get("adapters"):
        raise UserError(
            f"results: {folder} scored {place.name} with adapters = {', '.join(adapters)}; merge those and publish "
            "that folder, or leave it out"
        )
    if fingerprint is None:
        _check_heads(folder, place, record)
        return
    digest = language if record["stage"] == "language" else sentences
    kept = {name: config[name] for name in SAME if name in config}
    now = digest(place, tuple(kept.items()))
    if now == fingerprint:
        return
    given = {
        name: config[name] for name in SETTINGS if config.get(name, getattr(OpenKeys, name)) not in _defaults(name)
    }
    if given and digest(place, (*kept.items(), *given.items())) == fingerprint:
        said = ", ".join(f"{name} = {value!r}" for name, value in given.items())
        raise UserError(
            f"results: {folder} was scored with {said}, and {place.name} is opened otherwise: score it without, or "
            "leave it out"
        )
    raise UserError(
        f"results: {folder} scored other weights of {place.name} (fingerprint {fingerprint[:12]}, now {now[:12]}): "
        "score it again with --overwrite, or leave it out"
    )


def _defaults(name: str) -> tuple[Any, ...]:
    """Give the default of a key, as a config and as a record has it."""
    default = getattr(OpenKeys, name)
    return default, list(default) if isinstance(default, tuple) else default


def _check_heads(folder: Path, place: Path, record: dict[str, Any]) -> None:
    """Refuse scores of heads on a model that was trained anew since, or whose masks were others; raises UserError."""
    before = next(iter(record.get("parents") or [{}]))
    now = read_json(place / "run.json") if (place / "run.json").exists() else {}
    for key, said in (("started", "as it was trained at {}, and it was trained anew at {}"),
                      ("tokens", "after {:,} tokens, and it was trained to {:,} since")):  # fmt: skip
        then, since = before.get(key), now.get(key)
        if then and since and then != since:
            raise UserError(
                f"results: {folder} scored {place.name} {said.format(then, since)}: score it again with --overwrite, "
                "or leave it out"
            )
    files = (one / "turncoder.json" for one in (place, place / "model"))
    looks = next((read_json(file).get("bidirectional") for file in files if file.exists()), None)
    asked = record["config"].get("bidirectional")
    if None not in (looks, asked) and looks != asked:
        raise UserError(
            f"results: {folder} was scored with bidirectional = {asked}, and {place.name} is opened otherwise: score "
            "it without, or leave it out"
        )


def _digest_sentences(place: Path, keys: tuple[tuple[str, Any], ...]) -> str:
    """Hash an encoder, opened by these keys, as `evaluate sentences` does."""
    from turncoder.encode.encoder import open_encoder
    from turncoder.encode.texts import BatchEncoder
    from turncoder.encode.workers import digest_encoder

    encoder = open_encoder(OpenKeys(model_name_or_path=str(place), **dict(keys)))
    return digest_encoder(BatchEncoder(encoder, prompt=""))


def _digest_language(place: Path, keys: tuple[tuple[str, Any], ...]) -> str:
    """Hash a language model, opened by these keys, as `evaluate language` does."""
    from turncoder.evaluate.language import digest_language

    try:
        from turncoder.evaluate.harness import open_model
    except ImportError as error:
        raise UserError(f"results: evaluate language needs {error.name}: pip install 'turncoder[language]'") from error
    return digest_language(open_model(LanguageConfig(model_name_or_path=str(place), tasks=("headless",), **dict(keys))))
