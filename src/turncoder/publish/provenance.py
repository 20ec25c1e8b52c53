"""Where a published model comes from: its trainings, their data, and the terms of both, never guessed."""

from __future__ import annotations

import logging
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, metadata_load, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled

from turncoder.config.files import write_toml
from turncoder.config.keys import FitKeys
from turncoder.config.publishing import PublishConfig
from turncoder.data.files import names_file
from turncoder.errors import UserError
from turncoder.hub import locate_parent, may_be_hub_id
from turncoder.model.source import read_json
from turncoder.publish.bundle import Bundle
from turncoder.publish.cardparts import Step, tell_name
from turncoder.report.runrows import PROGRAMS

__all__ = ["Data", "Licence", "find_data", "find_licence", "hide_parents", "list_steps", "read_header", "tell_steps"]

logger = logging.getLogger("turncoder")

TEXTS = ("dataset_name", "train_file", "text", "pairs")
"""Keys that name training data."""
TOKEN = re.compile(r"\bhf_\w{10,}")


@dataclass(frozen=True)
class Licence:
    """A licence by the hub's names, and in words where it is from."""

    license: str
    source: str
    license_name: str | None = None
    license_link: str | None = None


@dataclass(frozen=True)
class Data:
    """What was trained on: data sets of the hub, names of files; their licence and languages where they are known."""

    datasets: tuple[str, ...]
    files: tuple[str, ...]
    license: str | None
    language: tuple[str, ...]


def find_licence(config: PublishConfig, bundle: Bundle, *, online: bool) -> Licence:
    """Take the licence that was given, or the base model's.

    Parameters
    ----------
    config, bundle
        Of what is published.
    online
        The hub may be asked for the base model's card.

    Raises
    ------
    UserError
        None was given and none is found, or the base model's card is behind a gate.
    """
    base = config.base_model or (bundle.base if bundle.base and may_be_hub_id(bundle.base) else None)
    places = [(bundle.base, bundle.base_revision)] if bundle.base and Path(bundle.base).is_dir() else []
    places += [(base, "main" if config.base_model else bundle.base_revision)] if base else []
    ask = online and not config.license
    headers = [(name, read_header(name, revision=revision, online=ask)) for name, revision in places]
    found = next(((name, header) for name, header in headers if header.get("license")), None)
    if config.license:
        if found and found[1]["license"] != config.license:
            logger.warning(
                "license = %r, and that of %s is %r", config.license, tell_name(found[0]), found[1]["license"]
            )
        told = "as whoever published this model says"
        return Licence(config.license, told, config.license_name, config.license_link)
    if found:
        name, header = found
        link, told = header.get("license_link"), f"that of {tell_name(name)}, by its card"
        return Licence(str(header["license"]), told, header.get("license_name"), link)
    if not places:
        raise UserError("license is not known: the model has no base model that it could be taken from; give --license")
    asked = "" if online or not base else "; a dry run does not ask the hub"
    raise UserError(
        f"license is not known: the card of {tell_name(places[-1][0])} names none that is to be found here{asked}; "
        "give --license, as the hub names it (apache-2.0, mit, cc-by-4.0, other, ...)"
    )


def find_data(config: PublishConfig, steps: list[tuple[Path, dict[str, Any]]], *, online: bool) -> Data:
    """Find what was trained on, and what cards of data sets say of it."""
    datasets: list[str] = []
    files: list[str] = []
    for _, record in steps:
        for key in TEXTS:
            name = record["config"].get(key)
            place = locate_parent(name, record) if name else ""
            if name and key != "train_file" and may_be_hub_id(place, "dataset") and not names_file(place):
                datasets.append(name)
            elif name:
                files.append(Path(name).name)
    headers = [read_header(name, repo_type="dataset", online=online) for name in dict.fromkeys(datasets)]
    licences = dict.fromkeys(_join(header.get("license")) for header in headers)
    known = None if files or None in licences else ", ".join(str(one) for one in licences)
    languages = dict.fromkeys(code for header in headers for code in _list(header.get("language")))
    data_license = config.data_license or known or None
    if (datasets or files) and data_license is None:
        logger.warning("the licence of the training data is not known, and the card says so: --data_license names it")
    return Data(
        tuple(dict.fromkeys(datasets)), tuple(dict.fromkeys(files)), data_license, config.language or tuple(languages)
    )


def read_header(name: str, *, revision: str = "main", repo_type: str = "model", online: bool) -> dict[str, Any]:
    """Read the header of a card: of a folder, from the hub's cache, or from the hub; empty where there is none.

    Raises
    ------
    UserError
        A card that is behind a gate.
    """
    if Path(name).is_dir():
        return _read_folder(Path(name))
    cached = try_to_load_from_cache(name, "README.md", revision=revision, repo_type=repo_type)
    if isinstance(cached, str):
        return _read_card(Path(cached))
    if not online:
        return {}
    api = HfApi()
    try:
        info: Any = api.repo_info(name, repo_type=repo_type, revision=revision)
    except GatedRepoError:
        raise UserError(
            f"{name} is gated, so its card cannot be read: ask for access on its page, or give --license"
        ) from None
    except (HTTPError, OfflineModeIsEnabled, OSError):
        return {}
    return info.card_data.to_dict() if info.card_data else {}


def _read_folder(folder: Path) -> dict[str, Any]:
    card, config = folder / "README.md", folder / "config.json"
    header = _read_card(card) if card.exists() else {}
    if not header.get("license") and config.exists() and isinstance(named := read_json(config).get("license"), str):
        header["license"] = named
    return header


def _read_card(path: Path) -> dict[str, Any]:
    """Read the header of a card; empty where it is none that can be read."""
    try:
        return metadata_load(path) or {}
    except (yaml.YAMLError, ValueError):
        return {}


def list_steps(bundle: Bundle) -> list[tuple[Path, dict[str, Any]]]:
    """List the runs that led to a model, the oldest first, as far as they are on this machine."""
    found = [(bundle.home, bundle.run)] if bundle.home else []
    for parent in (bundle.run or bundle.record).get("parents", []):
        place = Path(locate_parent(parent["name"], found[-1][1] if found else {}))
        run = read_json(place / "run.json") if (place / "run.json").exists() else {}
        # A model that head add wrote knows its run by name alone, and the folder of that name may be another one
        if run and (bundle.home or parent.get("started") == run.get("started")):
            found.append((place, run))
    return found[::-1]


def tell_steps(steps: list[tuple[Path, dict[str, Any]]]) -> tuple[Step, ...]:
    """Tell command and config of each training, without the folders of this machine."""
    told = []
    for folder, record in steps:
        cwd = Path(record.get("cwd", "."))
        program, *words = record["command"]
        if program not in PROGRAMS:  # a script that called turncoder.train
            words = [record["stage"], "config.toml"]
        words = [_hide_word(word, cwd) for word in words]
        path = folder / "config.toml"
        table = tomllib.loads(path.read_text(encoding="utf8")) if path.exists() else record["config"]
        config = write_toml(FitKeys, {key: _hide(value, cwd) for key, value in table.items()})
        told.append(Step(record["stage"], f"turncoder {shlex.join(words)}", TOKEN.sub("hf_...", config)))
    return tuple(told)


def hide_parents(parents: list[dict[str, Any]], base: str | None) -> list[dict[str, Any]]:
    """Name what a model was made from without the folders of this machine; ``base`` is the hub's id of the base model.

    The base model is the first that is no run: a merge names its adapters after it.
    """
    first = next((number for number, parent in enumerate(parents) if "stage" not in parent), None)
    names = [base if base and number == first else tell_name(one["name"]) for number, one in enumerate(parents)]
    return [{**parent, "name": name} for parent, name in zip(parents, names, strict=True)]


def _hide_word(word: str, cwd: Path) -> str:
    flag, equals, value = word.partition("=")
    hidden = f"{flag}={_hide(value, cwd)}" if equals and flag.startswith("--") else _hide(word, cwd)
    return TOKEN.sub("hf_...", str(hidden))


def _hide(value: Any, cwd: Path) -> Any:
    """Leave of a path its last name."""
    if isinstance(value, dict):
        return {key: _hide(one, cwd) for key, one in value.items()}
    if isinstance(value, list):
        return [_hide(one, cwd) for one in value]
    if not isinstance(value, str) or "/" not in value or "\n" in value:
        return value
    is_path = value.startswith(("/", "~", ".")) or (cwd / value).exists() or value.count("/") > 1
    return Path(value).name if is_path and "://" not in value else value


def _list(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, list) else [value] if value else [])]


def _join(value: Any) -> str | None:
    return ", ".join(_list(value)) or None
