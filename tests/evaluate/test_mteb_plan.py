"""What is said and refused before the first score: prompts, folders of other runs, scores that are not asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from run_folders import make_run
from turncoder.cli import main
from turncoder.config.sentences import SentencesConfig
from turncoder.errors import UserError
from turncoder.prompts import read_instructions

mteb = pytest.importorskip("mteb", reason="mteb is not installed (pip install 'turncoder[sentences]')")
mtebplan = pytest.importorskip("turncoder.evaluate.mtebplan")
mtebtasks = pytest.importorskip("turncoder.evaluate.mtebtasks")


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, str]:
    """A file of each of two kinds."""
    pairs = [{"sentence1": f"a dog {row}", "sentence2": "a cat", "score": row} for row in range(12)]
    three = [{"anchor": f"a dog {row}", "positive": "a puppy", "negative": "a car"} for row in range(12)]
    for name, rows in (("sts", pairs), ("trip", three)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf8")
    return {"sts": f"sts={tmp_path / 'sts.jsonl'}", "triplets": f"triplets={tmp_path / 'trip.jsonl'}"}


def make(stories: Path, *files: str, **keys: Any) -> SentencesConfig:
    return SentencesConfig(model_name_or_path=str(stories), task_file=files, device="cpu", dry_run=True, **keys)


def test_other_languages_or_splits_are_another_score() -> None:
    whole, english = mteb.get_task("STS17"), mteb.get_task("STS17", hf_subsets=["en-en"])
    told = {"data": json.loads(json.dumps(mtebplan.describe_data(whole))), "prompts": {}}
    assert mtebplan._find_change(told, whole, None, None) is None
    told["data"]["subsets"].reverse()
    assert mtebplan._find_change(told, whole, None, None) is None
    assert mtebplan._find_change(told, english, None, None).endswith("nl-en, and en-en is asked for")
    told["data"] |= {"subsets": ["en-en"], "splits": ["dev"]}
    assert "splits dev, and test" in mtebplan._find_change(told, english, None, None)
    told["data"] |= {"splits": ["test"], "revision": whole.metadata.revision[::-1]}
    assert "revision" in mtebplan._find_change(told, english, None, None)


def test_the_configuration_makes_everything_in_the_folder(stories: Path, specs: dict[str, str]) -> None:
    def join(config: SentencesConfig, done: list[str], *, tasks: list[str], files: list[str]) -> tuple[Any, Any]:
        found = mtebplan._read_asked(config)
        place = sts.partition("=")[2]
        told = {name: {"file": place} if name == "sts_sts" else {} for name in done}
        joined = mtebplan._join(config, {"tasks": tasks, "task_file": files}, found, told)
        return joined.tasks, joined.task_file

    sts, triplets = specs["sts"], specs["triplets"]
    assert join(make(stories, triplets), ["sts_sts"], tasks=[], files=[sts]) == ((), (triplets, sts))
    assert join(make(stories, triplets), [], tasks=[], files=[sts]) == ((), (triplets,))  # which failed
    config = make(stories, tasks=("STS12",))
    assert join(config, ["STS13", "STS12"], tasks=["STS13", "STS14"], files=[]) == (("STS12", "STS13"), ())
    lite = make(stories, tasks=("smoke",))
    assert join(lite, ["STSBenchmark"], tasks=["STSBenchmark"], files=[])[0] == ("smoke",)
    assert join(make(stories, tasks=("STS12",)), ["NFCorpus"], tasks=["smoke"], files=[])[0] == ("STS12", "smoke")
    implied = make(stories, languages=("bul",))
    assert join(implied, ["XNLI"], tasks=[], files=[])[0] == ()
    one = make(stories, tasks=("XNLI",), languages=("bul",))
    assert join(one, ["XNLI", "BelebeleRetrieval"], tasks=[], files=[])[0] == ("XNLI", "bg2vec")


def test_a_language_beside_files_is_said_to_stand_for_tasks(
    stories: Path, specs: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    mtebplan._read_asked(make(stories, specs["sts"], languages=("bul",)))
    assert "languages = bul without tasks stands for 9 tasks of mteb, beside the files: Bulgarian" in caplog.text
    caplog.clear()
    mtebplan._read_asked(make(stories, tasks=("XNLI",), languages=("bul",)))
    mtebplan._read_asked(make(stories, languages=("bul",)))
    assert "stands for" not in caplog.text


def test_prompts_of_nothing_known_are_refused_and_tasks_without_one_named(
    stories: Path, specs: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mtebtasks.check_prompts("f", read_instructions(), [])
    file = tmp_path / "pm.json"
    for key, said in (("STSS", r"'STSS' is no task .*; did you mean .*\bSTS\b"), ("quite another", "types are .*STS")):
        file.write_text(json.dumps({key: "x:"}), encoding="utf8")
        with pytest.raises(UserError, match=said):
            mtebplan.prepare(make(stories, specs["sts"], prompt_file=str(file)))
    file.write_text('{"STS": "x:", "SciFact": "y:"}', encoding="utf8")
    mtebplan.prepare(make(stories, specs["sts"], prompt_file=str(file)))
    assert "says nothing of" not in caplog.text
    file.write_text('{"sts_sts": "x:"}', encoding="utf8")
    mtebplan.prepare(make(stories, *specs.values(), prompt_file=str(file)))
    assert f"{file} says nothing of triplets_trip: prompts are the model's own" in caplog.text


def test_a_dry_run_refuses_what_the_run_refuses(
    stories: Path, specs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "sentences", str(stories), "--task_file", specs["sts"], "--device", "cpu", "--dry-run"]
    make_run(tmp_path / "trained")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    for name, more, said in (
        ("trained", [], "holds a run of 'mntp', not of 'sentences'"),
        ("other", [], "is not a run folder: name another"),
        ("other", ["--overwrite"], "is not a run folder and will not be deleted"),
        ("other/file", [], "is a file; name a folder"),
    ):
        assert main([*words, *more, "--output", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_the_model_goes_where_the_device_says(stories: Path, specs: dict[str, str]) -> None:
    config = make(stories, specs["sts"])
    assert mtebplan.prepare(config).model.model.device.type == "cpu"
    with pytest.raises(UserError, match="device = 'nonsense' is none"):
        mtebplan.prepare(dataclasses.replace(config, device="nonsense"))
