"""Gradients of several batches that make one step, and of several processes that share them."""

from pathlib import Path

import pytest
from launching import BOTH, GRADIENT, check_same_steps, launch, launch_process, losses
from safetensors.torch import load_file
from test_contrast import supervised


def test_two_accumulated_batches_give_their_mean(stories: Path, shared: Path, tmp_path: Path) -> None:
    """In one step of plain gradient descent; each batch alone takes the rows that it has in the step of both."""
    lines = (shared / "data/nli_triplets/train-en.jsonl").read_text(encoding="utf8").splitlines(keepends=True)
    both = tmp_path / "both.jsonl"
    both.write_text("".join(lines[:16]), encoding="utf8")
    common = {**GRADIENT, "per_device_train_batch_size": 8, "validation_split_percentage": 1e-6, "train_mode": "full"}
    launch(supervised(stories, both, tmp_path / "two", gradient_accumulation_steps=2, **common))
    from turncoder.data.batching import SetBatches

    [first, second] = list(SetBatches([16], batch_size=8, batches=2, steps=1, seed=42))
    assert sorted(map(int, [*first, *second])) == list(range(16))
    start = load_file(stories / "model.safetensors")
    steps = []
    for name, rows in (("first", first), ("second", second)):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[int(row)] for row in rows), encoding="utf8")
        launch(supervised(stories, tmp_path / f"{name}.jsonl", tmp_path / name, **common))
        steps.append(load_file(tmp_path / name / "model/model.safetensors"))
    found = load_file(tmp_path / "two/model/model.safetensors")
    moved = 0.0
    for name, weight in found.items():
        before = start[f"model.{name}"]
        step, mean = weight - before, (steps[0][name] + steps[1][name]) / 2 - before
        size = float(mean.abs().max())
        moved = max(moved, size)
        assert float((step - mean).abs().max()) < 1e-4 * size + 2e-7 * float(weight.abs().max()), name
    assert moved > 1e-3
    assert losses(tmp_path / "two") == pytest.approx([sum(losses(tmp_path / n)[0] for n in ("first", "second")) / 2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "ways",
    [{"symmetric": True}, {"gradient_accumulation_steps": 2}, {"symmetric": True, "gradient_accumulation_steps": 2}],
    ids=["symmetric", "accumulated", "both"],
)
def test_two_processes_equal_one(stories: Path, shared: Path, tmp_path: Path, ways: dict[str, object]) -> None:
    pairs = shared / "data/nli_triplets/train-en.jsonl"
    launch(supervised(stories, pairs, tmp_path / "one", **GRADIENT, per_device_train_batch_size=32, **ways))
    words = supervised(stories, pairs, tmp_path / "two", **GRADIENT, per_device_train_batch_size=16, **ways)
    launch_process([*BOTH, *words])
    check_same_steps(tmp_path / "one", tmp_path / "two", stories / "model.safetensors")
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)
