"""Turn language models into text encoders, and prove what was done.

Importing this package imports neither torch nor transformers: what it offers is loaded when it is first used.
"""

import importlib
from typing import Any

from turncoder.errors import ConversionError, UserError

__all__ = [
    "ConversionError",
    "GlueConfig",
    "MntpConfig",
    "PretrainConfig",
    "SimcseConfig",
    "SupervisedConfig",
    "TurnConfig",
    "UserError",
    "WordsConfig",
    "__version__",
    "attention_map",
    "encode_stream",
    "encode_texts",
    "load_encoder",
    "load_tagger",
    "make_bidirectional",
    "train",
]

_HOMES = {
    "GlueConfig": "turncoder.config.glue",
    "MntpConfig": "turncoder.config.stages",
    "PretrainConfig": "turncoder.config.pretraining",
    "SimcseConfig": "turncoder.config.stages",
    "SupervisedConfig": "turncoder.config.stages",
    "TurnConfig": "turncoder.config.stages",
    "WordsConfig": "turncoder.config.words",
    "attention_map": "turncoder.model.attention",
    "encode_stream": "turncoder.encode.texts",
    "encode_texts": "turncoder.encode.texts",
    "load_encoder": "turncoder.encode.encoder",
    "load_tagger": "turncoder.evaluate.tagger",
    "make_bidirectional": "turncoder.model.attention",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("turncoder")
    if name == "train":
        return importlib.import_module("turncoder.train")
    if name not in _HOMES:
        raise AttributeError(f"module 'turncoder' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
