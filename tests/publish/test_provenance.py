"""Licence, data and recipe of a published model: from cards and records, never guessed, without paths of here."""

import json
import logging
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakehub import FakeHub, Repository
from turncoder.config.publishing import PublishConfig
from turncoder.errors import UserError
from turncoder.publish.bundle import Bundle
from turncoder.publish.provenance import find_data, find_licence, hide_parents, list_steps, tell_steps


def configure(**others: Any) -> PublishConfig:
    return PublishConfig(folder="run", to="me/mine", **others)


def ask(base: str | None, *, online: bool = True, **others: Any) -> tuple[str, str | None, str | None, str]:
    found = find_licence(configure(**others), Bundle("encoder", Path("run"), base=base), online=online)
    return found.license, found.license_name, found.license_link, found.source


def test_a_licence_is_inherited_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n")
    said = f"that of {tmp_path.name}, by its card"
    assert ask(str(tmp_path), online=False) == ("other", "mine", "LICENSE", said)
    (tmp_path / "README.md").write_text("# Nothing said\n")
    (tmp_path / "config.json").write_text('{"license": "mit"}')
    assert ask(str(tmp_path), online=False)[0] == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: [mit\n---\n")  # no YAML
    assert ask(str(tmp_path), online=False)[0] == "mit"


def test_a_licence_is_inherited_from_the_hub(hub: FakeHub) -> None:
    hub.repositories["them/base"] = Repository(card={"license": "llama3", "license_link": "https://x.y"})
    assert ask("them/base")[::2] == ("llama3", "https://x.y")
    with pytest.raises(UserError, match="a dry run does not ask the hub; give --license"):
        ask("them/base", online=False)


def test_the_oldest_of_the_hub_have_no_owner(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_in_cache: Callable[..., None]
) -> None:
    keep_in_cache("models--gpt2", "datasets--wikitext")
    hub.repositories |= {"gpt2": Repository(card={"license": "mit"})}
    hub.repositories |= {"datasets/wikitext": Repository(card={"license": "cc-by-sa-3.0", "language": ["en"]})}
    assert ask("gpt2")[::3] == ("mit", "that of gpt2, by its card")
    assert data({"dataset_name": "wikitext"}) == (("wikitext",), (), "cc-by-sa-3.0", ("en",))
    assert data({"text": "wikitext", "pairs": "gone.jsonl"})[:2] == (("wikitext",), ("gone.jsonl",))
    assert data({"text": "corpus"})[:2] == ((), ("corpus",))
    assert data({"train_file": "texts"}, {"text": "./texts"})[:2] == ((), ("texts",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(UserError, match="the card of gpt2 names none"):
        ask("gpt2")


def test_a_licence_that_was_given_wins_and_another_one_is_said(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    with caplog.at_level(logging.WARNING, "turncoder"):
        assert ask(str(tmp_path), license="mit")[0] == "mit"
    assert "'mit'" in caplog.text and "'cc-by-nc-4.0'" in caplog.text


@pytest.mark.parametrize(
    ("base", "repository", "parts"),
    [
        (None, None, ["no base model", "--license"]),
        ("them/base", None, ["them/base", "names none", "--license"]),
        ("them/base", Repository(), ["them/base", "names none", "--license"]),
        ("them/base", Repository(gated=True), ["them/base is gated", "ask for access", "--license"]),
    ],
    ids=["none", "gone", "silent", "gated"],
)
def test_a_licence_is_never_guessed(base: str, repository: Repository, parts: list[str], hub: FakeHub) -> None:
    if repository:
        hub.repositories["them/base"] = repository
    with pytest.raises(UserError) as caught:
        ask(base)
    assert all(part in str(caught.value) for part in parts), caught.value


def data(*configs: dict[str, Any], online: bool = True, **others: Any) -> tuple[Any, ...]:
    found = find_data(configure(**others), [(Path("run"), {"config": config}) for config in configs], online=online)
    return found.datasets, found.files, found.license, found.language


def test_data_of_the_hub_tell_their_licence_and_language(hub: FakeHub, caplog: Any) -> None:
    wiki, pairs = {"license": "cc-by-sa-4.0", "language": ["bg"]}, {"license": "mit", "language": ["bg", "en"]}
    hub.repositories |= {"datasets/them/wiki": Repository(card=wiki), "datasets/them/pairs": Repository(card=pairs)}
    first, second = {"dataset_name": "them/wiki"}, {"dataset_name": "them/pairs"}
    expected = ("them/wiki", "them/pairs"), (), "cc-by-sa-4.0, mit", ("bg", "en")
    assert data(first, second, first) == expected
    assert data(first, language=("fr",))[3] == ("fr",)
    assert not caplog.records
    mixed = data(first, {"train_file": "/home/me/secret/texts.jsonl"})
    assert mixed == (("them/wiki",), ("texts.jsonl",), None, ("bg",)) and "--data_license" in caplog.text
    assert data({"train_file": "a/texts.txt"}, data_license="mit")[1:3] == (("texts.txt",), "mit")
    assert data(first, online=False)[2] is None


def test_paths_and_tokens_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "config.toml").write_text(
        'model_name_or_path = "them/base"\ntrain_file = "/home/me/text.txt"\noutput_dir = "runs"\n'
        'adapters = ["/home/me/one", "them/two"]\n[training]\nhub_token = "hf_abcdefghijklmnop"\nrun_name = "a/b/c"\n'
    )
    command = ["turncoder", "mntp", "--train_file=/home/me/text.txt", "--hub_token", "hf_abcdefghijklmnop"]
    record = {"stage": "mntp", "command": command, "cwd": str(tmp_path), "config": {}}
    (step,) = tell_steps([(tmp_path, record)])
    assert step.command == "turncoder mntp --train_file=text.txt --hub_token hf_..."
    told = tomllib.loads(step.config)
    assert told["model_name_or_path"] == "them/base" and told["adapters"] == ["one", "them/two"]
    assert "/home" not in step.config and "abcdef" not in step.config
    chain = [{"name": "/home/me/one", "stage": "mntp"}, {"name": "/home/me/base"}]
    assert hide_parents(chain, None) == [{"name": "one", "stage": "mntp"}, {"name": "base"}]
    assert hide_parents(chain, "them/base") == [{"name": "one", "stage": "mntp"}, {"name": "them/base"}]
    merged = [{"name": "/home/me/base"}, {"name": "/home/me/adapter"}]
    assert hide_parents(merged, "them/base") == [{"name": "them/base"}, {"name": "adapter"}]


def test_all_trainings_that_are_here_are_told_the_oldest_first(runs: Path) -> None:
    record = json.loads((runs / "simcse/run.json").read_text())
    steps = list_steps(Bundle("encoder", runs / "simcse/model", runs / "simcse", run=record))
    assert [one["stage"] for _, one in steps] == ["mntp", "simcse"]
    assert tell_steps(steps)[1].command == "turncoder simcse config.toml"  # pytest called it, not the command line
    config = tomllib.loads(tell_steps(steps)[1].config)
    assert (config["model_name_or_path"], config["train_file"], config["max_steps"]) == ("mntp", "text.txt", 3)
