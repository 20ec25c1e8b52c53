"""What of a run, or a model folder, is published: files by an explicit list, checked, and the records beside them.

Nothing else goes up: no checkpoint, no pickle, no file that happens to lie there.
"""

from __future__ import annotations

import fnmatch
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from turncoder.config.publishing import PublishConfig
from turncoder.data.tokenizer import OTHER_FILES, VOCABULARY_FILES, tokenizer_files
from turncoder.errors import UserError
from turncoder.hub import locate_parent, may_be_hub_id
from turncoder.model.source import read_json

__all__ = ["Bundle", "follow_base", "is_published", "open_bundle"]

Kind = Literal["encoder", "adapter", "language", "heads"]
TOKENIZER = (*VOCABULARY_FILES, *OTHER_FILES)
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
MODEL = (
    "config.json", "generation_config.json", *WEIGHTS, *TOKENIZER, "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "1_Pooling/config.json", "llm2vec_config.json", "unigram.safetensors",
    "onnx/model.onnx", "onnx/model.onnx.data", "onnx/model.onnx_data",
)  # fmt: skip
TERMS = ("LICENSE", "LICENSE.*", "NOTICE")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "encoder.json", "llm2vec_config.json")
HEADS = ("tagger/tagger.json", "tagger/heads.safetensors")
OWN = ("turncoder.json", "README.md")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass
class Bundle:
    """What is published, but for the card.

    Attributes
    ----------
    kind
        An encoder, an adapter for one, a language model, or heads alone that read a model of the hub.
    folder
        Where the model lies.
    home
        Its run folder; None of a model folder without one.
    files
        By their names in the repository: a file, or what is to be in it.
    record
        What ``turncoder.json`` says.
    run
        What ``run.json`` says; empty where there is none.
    base, base_revision
        What it was made from in the end: a hub id, or a folder; None for a model that was trained from nothing.
    left_out
        What lies beside and does not go up.
    tasks
        Of words, whose labels it tells.
    """

    kind: Kind
    folder: Path
    home: Path | None = None
    files: dict[str, Path | bytes] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    base_revision: str = "main"
    left_out: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)

    def read(self, name: str) -> dict[str, Any]:
        """Read one of the JSON files; empty where it is not there."""
        content = self.files.get(name)
        if content is None:
            return {}
        return json.loads(content) if isinstance(content, bytes) else read_json(content)


def is_published(name: str) -> bool:
    """Say whether a file of a repository is part of a model that `publish` wrote, and of no use with another."""
    return any(_fits(name, pattern) for pattern in (*MODEL, *ADAPTER, *HEADS, *OWN))


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def open_bundle(config: PublishConfig) -> Bundle:
    """Find what is published, and check that it is whole.

    Raises
    ------
    UserError
        No such folder, a run that is not done or has nothing to publish, weights that are missing, cut off or
        pickled, an adapter whose base model nobody else has.
    """
    folder = Path(str(config.folder))
    if not folder.is_dir():
        raise UserError(f"FOLDER {folder} is no folder; name a run or a model folder")
    if (folder.parent / "run.json").exists() and folder.name in ("model", "adapter"):
        adapter_only, home = folder.name == "adapter" or config.adapter_only, folder.parent
        return _open_run(config, home, adapter_only=adapter_only)
    if (folder / "run.json").exists():
        return _open_run(config, folder, adapter_only=config.adapter_only)
    if config.adapter_only or (folder / "adapter_config.json").exists():
        raise UserError(f"adapter_only: {folder} has no run.json, which tells what an adapter belongs to; name the run")
    return _open_model(Bundle("encoder", folder))


def _open_run(config: PublishConfig, home: Path, *, adapter_only: bool) -> Bundle:
    home = _find_inner(home)
    run = read_json(home / "run.json")
    if run.get("status") != "done":
        raise UserError(f"FOLDER {home}: the run is {run.get('status')}; the same command as before finishes it")
    bundle = Bundle("encoder", home / "model", home, run=run)
    has_model, has_adapter = (home / "model").is_dir(), (home / "adapter").is_dir()
    if run.get("stage") == "words":
        _add_heads(bundle, home)
        has_model = has_model or (bundle.folder / "config.json").exists()
    if bundle.kind == "heads":
        return bundle
    if config.merged and not has_model:
        raise UserError(
            f"merged: {home} has no model/ (save_merged); write one: turncoder merge {home} --output FOLDER, and "
            "publish that"
        )
    if adapter_only and not has_adapter:
        raise UserError(f"adapter_only: {home} has no adapter/ (train_mode = {run['config'].get('train_mode')})")
    if adapter_only or (has_adapter and not has_model):
        return _open_adapter(bundle, config)
    if not has_model:
        raise UserError(
            f"FOLDER {home}: a run of {run.get('stage')} has no model to publish; name one that trained one"
        )
    return _open_model(bundle)


def _find_inner(home: Path) -> Path:
    """Find the run that made the model: of a turn its last stage, of several seeds on words the best."""
    stage = read_json(home / "run.json").get("stage")
    if stage == "turn":
        inner = [home / name for name in ("supervised", "simcse", "mntp") if (home / name / "run.json").exists()]
        return inner[0] if inner else home
    if stage == "words":
        from turncoder.evaluate.tagger import find_tagger

        return find_tagger(home)
    return home


def _open_model(bundle: Bundle) -> Bundle:
    """Take the files of a model folder."""
    folder = bundle.folder
    if not (folder / "config.json").exists():
        raise UserError(f"FOLDER {folder} is neither a run (run.json) nor a model folder (config.json)")
    if not (folder / "turncoder.json").exists():
        raise UserError(
            f"FOLDER {folder} has no turncoder.json, so nothing is known of how it was made; turncoder merge {folder} "
            "--output FOLDER writes a folder that has"
        )
    bundle.kind = "encoder" if (folder / "modules.json").exists() else "language"
    model = read_json(folder / "config.json")
    patterns = (*MODEL, *TERMS, "*.py") if "auto_map" in model else (*MODEL, *TERMS)
    _take(bundle, folder, patterns)
    _check_weights(folder)
    if not any(_fits(name, pattern) for name in bundle.files for pattern in VOCABULARY_FILES):
        raise UserError(f"FOLDER {folder} is not whole: it has no tokenizer; copy its files there, or write it again")
    if bundle.kind == "encoder":
        lacking = [name for name in ("sentence_bert_config.json", "1_Pooling/config.json") if name not in bundle.files]
        if lacking:
            raise UserError(f"FOLDER {folder} is not whole: {lacking[0]} is missing; write it again")
    bundle.record = read_json(folder / "turncoder.json")
    parents = bundle.record.get("parents", [])
    bundle.base = follow_base(str(folder))
    if len(parents) <= 1 and bundle.run.get("config"):
        bundle.base_revision = bundle.run["config"].get("model_revision") or "main"
    return bundle


def follow_base(name: str | None) -> str | None:
    """Follow a model folder, or a run, to what it was made from in the end: a hub id, a folder, or nothing."""
    while name and any((Path(name) / file).exists() for file in ("run.json", "turncoder.json")):
        folder = Path(name)
        home = folder if (folder / "run.json").exists() else folder.parent
        run = read_json(home / "run.json") if (home / "run.json").exists() else {}
        record = run if home == folder else read_json(folder / "turncoder.json")
        base = next((one["name"] for one in record.get("parents", []) if "stage" not in one), None)
        name = base and locate_parent(base, run)
    return name


def _take(bundle: Bundle, folder: Path, patterns: tuple[str, ...]) -> None:
    """Put the files of a folder that are on the list into the bundle, and name the others."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if any(_fits(name, pattern) for pattern in patterns):
            bundle.files[name] = path
        elif name not in OWN:
            bundle.left_out.append(name)


def _check_weights(folder: Path) -> None:
    """Refuse weights that are missing, cut off or pickled."""
    index = folder / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    for name in names:
        if (folder / name).exists():
            check_safetensors(folder / name)
            continue
        pickles = [path.name for pattern in PICKLES for path in folder.glob(pattern)]
        if pickles:
            raise UserError(
                f"FOLDER {folder}: its weights are a pickle ({pickles[0]}), which runs code when it is opened; write "
                "them as safetensors"
            )
        raise UserError(f"FOLDER {folder} is not whole: {name} is missing; write it again")


def check_safetensors(path: Path) -> None:
    """Refuse, with a UserError, a file of weights that is not whole."""
    try:
        with safe_open(path, "numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not whole ({error}); write it again") from error


def _open_adapter(bundle: Bundle, config: PublishConfig) -> Bundle:
    """Take the adapter of a run: with those below it as one, on a base model of the hub."""
    assert bundle.home is not None
    bundle.kind, bundle.folder = "adapter", bundle.home / "adapter"
    adapters, base, bundle.base_revision = _find_chain(bundle.home)
    bundle.base = base
    named = config.base_model or base
    if not may_be_hub_id(named):
        raise UserError(
            f"adapter_only: the adapter belongs to {base}, a folder that nobody else has; say by what id the hub has "
            "it (--base_model OWNER/NAME), or publish with --merged"
        )
    _take(bundle, bundle.folder, ADAPTER)
    for name in ("adapter_config.json", "adapter_model.safetensors", "encoder.json"):
        if name not in bundle.files:
            raise UserError(f"FOLDER {bundle.folder} is not whole: {name} is missing; train again")
    for adapter in adapters:
        check_safetensors(adapter / "adapter_model.safetensors")
    told = bundle.read("adapter_config.json")
    if len(adapters) > 1:
        from safetensors.torch import save

        from turncoder.model.joining import join_adapters

        own, weights = join_adapters(adapters)
        told |= own
        bundle.files["adapter_model.safetensors"] = save(weights, {"format": "pt"})
    revision = bundle.base_revision if not config.base_model and bundle.base_revision != "main" else None
    told |= {"base_model_name_or_path": named, "revision": revision}
    bundle.files["adapter_config.json"] = (json.dumps(told, indent=2) + "\n").encode()
    tokenizer = bundle.run["config"].get("tokenizer_name")
    if tokenizer:
        for path in tokenizer_files(locate_parent(tokenizer, bundle.run)):
            bundle.files[path.name] = path
    saved = bundle.home / "model" / "turncoder.json"
    bundle.record = read_json(saved) if saved.exists() else {}
    bundle.record |= {"stage": bundle.run["stage"], "parents": bundle.run.get("parents", [])}
    bundle.record.setdefault("results", bundle.run.get("results", {}))
    bundle.record.setdefault("attention", bundle.run.get("attention"))
    bundle.record.pop("card", None)
    return bundle


def _find_chain(home: Path) -> tuple[list[Path], str, str]:
    """Follow a run to its base model: the adapters, the first one first, the base, and its revision."""
    record = read_json(home / "run.json")
    config = record["config"]
    if not (home / "adapter").is_dir():
        raise UserError(
            f"adapter_only: {home} below it trained every weight, so that no adapter on its base model is the same; "
            "publish with --merged"
        )
    others = [Path(locate_parent(name, record)) for name in config.get("adapters") or ()]
    for place in others:
        if not (place / "run.json").exists() and not (place / "encoder.json").exists():
            raise UserError(f"adapter_only: {place} below it is an adapter of others; publish with --merged")
    own = [place / "adapter" if (place / "run.json").exists() else place for place in others]
    parent = Path(locate_parent(config["model_name_or_path"], record))
    if parent.name == "model" and (parent.parent / "run.json").exists():
        parent = parent.parent
    if (parent / "run.json").exists():
        below, base, revision = _find_chain(_find_inner(parent))
        return [*below, *own, home / "adapter"], base, revision
    base = str(parent) if parent.exists() else config["model_name_or_path"]
    if not parent.exists() and any("stage" in one and one["name"] == base for one in record.get("parents", [])):
        raise UserError(
            f"adapter_only: {home} was trained on the run {base}, which is not here any more, and the adapter is "
            "nothing without it; publish with --merged"
        )
    return [*own, home / "adapter"], base, config.get("model_revision") or "main"


def _add_heads(bundle: Bundle, home: Path) -> None:
    """Take the heads of a run on words, and find the model that they read."""
    spec = read_json(home / "tagger" / "tagger.json")
    check_safetensors(home / "tagger" / "heads.safetensors")
    bundle.tasks = list(spec["tasks"])
    model = spec["model"]
    if model["name"] != ".":  # a probe, on states of a model that is elsewhere
        place = Path(model["name"])
        if model.get("adapters"):
            raise UserError(f"FOLDER {home}: its heads read {place} with adapters; merge those, train on that folder")
        if place.exists():
            place = place / "model" if (place / "run.json").exists() else place
            if not (place / "modules.json").exists() or not (place / "turncoder.json").exists():
                raise UserError(
                    f"FOLDER {home}: its heads read {place}, which is no model folder of turncoder; train them on the "
                    "hub id of that model"
                )
            bundle.folder = place
            spec["model"] = {**model, "name": "."}
        else:
            bundle.kind = "heads"
            bundle.base, bundle.base_revision = model["name"], model.get("revision") or "main"
            bundle.record = {"stage": "words", "parents": bundle.run.get("parents", [])}
        spec["model"] |= {"cache_dir": None}
    bundle.files["tagger/tagger.json"] = (json.dumps(spec, indent=2, ensure_ascii=False) + "\n").encode()
    bundle.files["tagger/heads.safetensors"] = home / "tagger" / "heads.safetensors"
