"""A grid of word-level runs: what is done is not done again, and nothing of another configuration is in the table."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from turncoder.config.words import WordsConfig
from turncoder.errors import UserError
from turncoder.grid import run_grid

GRID = """
train_file = "train"
validation_file = "train"
num_train_epochs = {epochs}
seeds = [1, 2]
learning_rate = 1e-2
[tasks.tags]
task = "tags"
[regimes.probe]
alignment = "same_token"
[models.one]
model_name_or_path = '{model}'
[models.two]
model_name_or_path = '{model}'
bidirectional = false
"""


@pytest.fixture
def grid(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a grid, and give its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    Path("train").write_text("the DET\ncat NOUN\n\n" * 6)

    def write(**changes: object) -> str:
        Path("grid.toml").write_text(GRID.format(**{"epochs": 1, "model": stories, **changes}))
        return "grid.toml"

    return write


def test_a_grid_resumes_and_takes_no_run_of_another_configuration(grid: Callable[..., str]) -> None:
    config = WordsConfig(grid=grid(), output_dir="out")
    run_grid(config)
    places = [Path(f"out/tags/probe/{name}/results.json") for name in ("one", "two")]
    rows = json.loads(Path("out/grid.json").read_text())
    for place, row in zip(places, rows, strict=True):
        told = json.loads(place.read_text())["tasks"]["tags"]
        assert row["mean"] == told["mean"]["token_accuracy"] and row["std"] == told["std"]["token_accuracy"]
    before = [place.stat().st_mtime_ns for place in places]
    run_grid(config)
    assert [place.stat().st_mtime_ns for place in places] == before
    grid(epochs="1\nmerge_subwords = false")
    with pytest.raises(UserError, match=r"2 of 2 runs failed.*merge_subwords: True -> False"):
        run_grid(config)
    assert [place.stat().st_mtime_ns for place in places] == before


def test_the_table_is_written_without_touching_runs_that_want_more_steps(grid: Callable[..., str]) -> None:
    run_grid(WordsConfig(grid=grid(epochs='1\nlr_scheduler_type = "constant"'), output_dir="out"))
    folder = Path("out/tags/probe/two")
    before = [(folder / name).read_text() for name in ("run.json", "config.toml")]
    more = grid(epochs='2\nlr_scheduler_type = "constant"')
    run_grid(WordsConfig(grid=more, output_dir="out", cell=0))
    assert [(folder / name).read_text() for name in ("run.json", "config.toml")] == before
    (row,) = json.loads(Path("out/grid.json").read_text())
    assert row["model"] == "one", "the other is not one of this grid until it has its steps"


def test_keys_beside_a_grid_are_refused(grid: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"grid = 'grid.toml' and seeds are both set; keys of runs go into"):
        run_grid(WordsConfig(grid=grid(), output_dir="out", seeds=(3,)))
    assert not Path("out").exists()
