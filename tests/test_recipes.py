import re
from pathlib import Path

import pytest

from turncoder.cli import main
from turncoder.config.cluster import load_slurm
from turncoder.config.glue import GlueConfig
from turncoder.config.pretraining import PretrainConfig
from turncoder.config.stages import MntpConfig, differences, load_config, to_dict
from turncoder.grid import open_grid

HEADLESS = sorted((Path(__file__).parents[1] / "recipes" / "headless").glob("*.toml"))
GLUE = sorted((Path(__file__).parents[1] / "recipes" / "glue").glob("*.toml"))
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
PAIRS = {
    "mntp-sheared-llama-1.3b": "llm2vec/train_configs/mntp/Sheared-Llama.json",
    "mntp-llama2-7b": "llm2vec/train_configs/mntp/Llama2.json",
    "mntp-llama3-8b": "llm2vec/train_configs/mntp/MetaLlama3.json",
    "mntp-llama3.1-8b": "llm2vec/train_configs/mntp/MetaLlama3.1.json",
    "mntp-mistral-7b": "llm2vec/train_configs/mntp/Mistral.json",
    "mntp-bggpt-7b": "bg2vec/model_configurations/bggpt-7b.json",
}
HEAD = ("command", "hardware", "time", "score")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_and_say_what_they_take(recipe, caplog):
    config = load_config(MntpConfig, recipe)
    assert not caplog.records, "a recipe needs no translation"
    head = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    told = {match[1]: match[2] for line in head if (match := re.match(r"# (\w+) +(.+)", line))}
    assert set(HEAD) <= told.keys()
    assert f"turncoder mntp recipes/{recipe.name}" in told["command"]
    assert re.match(r"(estimated|measured)", told["time"])
    assert config.lora_r == 16


@pytest.mark.parametrize("name", PAIRS)
def test_recipes_are_the_runs_of_others(shared, name):
    recipe = next(path for path in RECIPES if path.stem == name)
    theirs = to_dict(load_config(MntpConfig, shared / "configs" / PAIRS[name]))
    ours = to_dict(load_config(MntpConfig, recipe))
    assert theirs["stop_after_n_steps"] == ours["max_steps"] == 1000
    spelled_otherwise = {"dataset_name", "output_dir", "max_steps", "stop_after_n_steps", "cache_dir", "text_column"}
    assert differences(theirs, ours, ignore=frozenset(spelled_otherwise)) == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One corpus and one proof for all runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_two_steps_of_every_run(shared, stories, stories_text, tmp_path, monkeypatch, cache, name):
    monkeypatch.setenv("TURNCODER_CACHE", str(cache))
    file = shared / "configs" / PAIRS[name]
    words = ["--model_name_or_path", stories, "--train_file", stories_text, "--text_column", "none"]
    words += ["--max_steps", "2", "--max_eval_samples", "8", "--output", tmp_path / "run"]
    assert main(["mntp", str(file), *map(str, words)]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"run.json", "metrics.jsonl", "adapter", "model"}


def test_the_custom_corpus_recipe(stories, tmp_path, monkeypatch):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.json"
    texts = ", ".join(f'{{"text": "Once upon a time number {n} was a red ball that Lily found."}}' for n in range(200))
    corpus.write_text(f"[{texts}]")
    words = ["--model_name_or_path", stories, "--train_file", corpus, "--max_seq_length", "64", "--max_steps", "2"]
    recipe = next(path for path in RECIPES if path.stem == "custom-corpus")
    assert main(["mntp", str(recipe), *map(str, words), "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model" / "modules.json").exists()


def test_the_grid_of_words():
    path = Path(__file__).parents[1] / "recipes" / "words" / "grid.toml"
    _, cells = open_grid(path, "runs/words")
    assert len(cells) == 14 * 5 * 3
    assert {cell.config.train_mode for cell in cells} == {"probe", "lora", "full"}
    stacks = {cell.model: cell.config.adapters for cell in cells}
    assert [len(stacks[f"mistral-{kind}"]) for kind in ("uni", "bi", "bi-mntp", "bi-mntp-simcse")] == [0, 0, 1, 2]
    assert "command   turncoder words --grid recipes/words/grid.toml" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", GLUE, ids=lambda path: path.stem)
def test_recipes_of_glue_are_read_and_say_what_they_take(recipe, caplog):
    config = load_config(GlueConfig, recipe, ["--model_name_or_path", "m"])
    assert not caplog.records and len(config.seeds) == 3
    head = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    told = {match[1]: match[2] for line in head if (match := re.match(r"# (\w+) +(.+)", line))}
    assert set(HEAD) <= told.keys()
    assert told["command"].startswith(f"turncoder evaluate glue MODEL recipes/glue/{recipe.name}")


@pytest.mark.parametrize("recipe", HEADLESS, ids=lambda path: path.stem)
def test_headless_recipes_are_read_and_say_what_they_take(recipe, caplog):
    config = load_config(PretrainConfig, recipe, ["--train_file", "text.txt"])
    assert not caplog.records and config.objective == "cwt"
    head = [line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    told = {match[1]: match[2] for line in head if (match := re.match(r"# (\w+) +(.+)", line))}
    assert {*HEAD, "next"} <= told.keys()
    assert f"turncoder pretrain recipes/headless/{recipe.name}" in told["command"]
    assert re.match(r"(estimated|measured)", told["time"])


def test_the_file_of_a_site():
    path = Path(__file__).parents[1] / "recipes" / "cluster" / "site.toml"
    slurm = load_slurm(path, {"time": "30"})
    assert (slurm.partition, slurm.minutes, slurm.others) == ("gpu", 30, {"mail_type": "END,FAIL"})
