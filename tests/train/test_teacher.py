"""Distillation and Matryoshka from the command line: the teacher's vectors, their cache, resuming, the artifact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from turncoder import encode_texts, load_encoder
from turncoder.cli import main
from turncoder.config.stages import SupervisedConfig
from turncoder.data.pairs import open_pairs
from turncoder.train.contrast_trainer import Collator, SetRows
from turncoder.train.running import open_run
from turncoder.train.teacher import ask_teacher, open_teacher

LLAMA: dict[str, Any] = {
    "vocab_size": 512, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 256,
}  # fmt: skip


@pytest.fixture
def place(make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student of width 16, a teacher of width 24, and 40 triplets in which texts come twice."""
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    make_model(LlamaConfig(**LLAMA, hidden_size=16), "student")
    make_model(LlamaConfig(**LLAMA, hidden_size=24), "teacher")
    rows = [
        {"anchor": f"There were {i} dogs", "positive": f"{i} dogs ran home", "negative": f"One cat in {i % 20} hats"}
        for i in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words(place: Path, **changes: object) -> list[str]:
    flags = {
        "model_name_or_path": place / "student", "train_file": place / "pairs.jsonl", "output_dir": place / "run",
        "teacher_name_or_path": place / "teacher", "max_steps": 4, "save_steps": 2, "logging_steps": 1,
        "per_device_train_batch_size": 8, "lora_dropout": 0.0, "validation_split_percentage": 20, **changes,
    }  # fmt: skip
    return ["supervised", *(f"--{name}={value}" for name, value in flags.items() if value is not None)]


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("prompts", [{}, {"query": "Find it:\n", "document": "Take this:\n"}])
def test_a_batch_has_the_teachers_vectors(place: Path, prompts: dict[str, str]) -> None:
    config = SupervisedConfig(
        model_name_or_path=str(place / "student"), teacher_name_or_path=str(place / "teacher"),
        train_file=str(place / "pairs.jsonl"), output_dir=str(place / "run"),
    )  # fmt: skip
    sets = [open_pairs(file=config.train_file, share=share)[0][0] for share in (0, 30)]
    teacher = open_teacher(config)
    assert teacher is not None
    teacher.prompts = prompts
    lessons = ask_teacher(teacher, sets, open_run(config, "supervised"))
    prompted = bool(prompts)
    distinct = {
        (prompted and name == "anchor", text) for name in sets[0].data.column_names for text in sets[0].data[name]
    }
    [file] = (place / "cache" / "teacher").iterdir()
    assert lessons.vectors_UD.shape == np.load(file).shape == (len(distinct), 24)
    rows = SetRows(sets)
    encoder = load_encoder(str(place / "student"), device="cpu")
    for chosen in ([3, 17, 39, 4], [40, 41, 59]):
        texts = [rows[item] for item in chosen]
        batch = Collator(encoder, sets, lessons)(texts)
        expected = [
            torch.from_numpy(encode_texts(teacher, [text[name] for text in texts], prompt=prompt, normalize=True))
            for name, prompt in zip(
                sets[0].data.column_names, [prompts.get("query"), *2 * [prompts.get("document")]], strict=True
            )
        ]
        lengths = [sum(len(encoder.tokenizer(text[name])["input_ids"]) for name in sets[0].prompts or text
                       if name not in ("set", "row")) for text in texts]  # fmt: skip
        order = np.argsort(-np.array(lengths), kind="stable")
        torch.testing.assert_close(batch["label"].squeeze(-1), torch.stack(expected, 1)[order], atol=1e-5, rtol=0)


def test_it_trains_and_resumes_as_if_never_stopped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place)) == 0
    assert "teacher: " in capsys.readouterr().err
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["teacher"]["width"] == 24
    whole = load_file(place / "run" / "model" / "model.safetensors")
    stopped = place / "stopped"
    assert main(words(place, output_dir=stopped, stop_after_n_steps=2, lr_scheduler_type="constant")) == 0
    assert "teacher: " not in capsys.readouterr().err  # from the cache
    assert main(words(place, output_dir=stopped, lr_scheduler_type="constant")) == 0
    assert main(words(place, output_dir=place / "constant", lr_scheduler_type="constant")) == 0
    assert losses(stopped) == losses(place / "constant")
    resumed, straight = (load_file(place / name / "model" / "model.safetensors") for name in ("stopped", "constant"))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert main(words(place, output_dir=place / "alone", teacher_name_or_path=None)) == 0
    assert losses(place / "alone")[0] < losses(place / "run")[0]
    alone = load_file(place / "alone" / "model" / "model.safetensors")
    assert any(not torch.equal(alone[name], whole[name]) for name in whole)


def test_another_teacher_is_no_resuming(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"lr_scheduler_type": "constant"}
    assert main(words(place, stop_after_n_steps=2, **keys)) == 0
    weights = load_file(place / "teacher" / "model.safetensors")
    weights["norm.weight"][0] += 1
    save_file(weights, place / "teacher" / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(words(place, **keys)) == 2
    assert "another teacher" in capsys.readouterr().err


def test_a_teacher_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, teacher_name_or_path=place / "gone")) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and "teacher_name_or_path" in error[0] and "gone" in error[0]
    assert not (place / "run").exists()


@pytest.mark.parametrize("cached", [None, 64])
def test_dimensions_are_recorded(place: Path, cached: int | None) -> None:
    changes = {"max_steps": 2, "matryoshka_dims": 4, "mini_batch_num_tokens": cached}
    assert main(words(place, **changes)) == 0
    record = json.loads((place / "run" / "model" / "turncoder.json").read_text())
    assert record["matryoshka_dims"] == [4]


def test_dimensions_that_are_too_many(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, matryoshka_dims=17)) == 2
    assert "matryoshka_dims: 17 is more than the 16 dimensions" in capsys.readouterr().err
    assert not (place / "run").exists()
