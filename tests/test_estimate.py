"""What encoding or merging would cost: shown, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig

from turncoder.cli import main
from turncoder.config.encoding import EncodeConfig, MergeConfig
from turncoder.errors import UserError
from turncoder.estimate import plan_encode, plan_merge

LLAMA = LlamaConfig(
    vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=256,
)  # fmt: skip
TEXTS = [f"Once upon a time there were {number} dogs" for number in range(100)]
PARAMETERS = 512 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32


@pytest.fixture
def config(make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., EncodeConfig]:
    """Keys of an encoding; only the model and the texts are on disk."""
    source, model = tmp_path / "texts.txt", make_model(LLAMA)
    source.write_text("".join(f"{text}\n" for text in TEXTS))

    def make(**keys: object) -> EncodeConfig:
        given = {"model_name_or_path": str(model), "input_file": str(source), "output_dir": str(tmp_path / "out")}
        return EncodeConfig(**{**given, **keys})  # type: ignore[arg-type]

    return make


def test_an_encoding_is_planned_from_a_sample(
    config: Callable[..., EncodeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = plan_encode(config(batch_tokens=500, processes=1)).memory
    shared = plan_encode(config(batch_tokens=500, processes=3)).memory
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    plan = plan_encode(config(shard_texts=30, batch_tokens=500))
    assert three["3 batches, side by side"] == 3 * plan.memory["a batch"] == 3 * shared["a batch"]
    assert plan.parameters == {"total": PARAMETERS}
    assert plan.memory["model"] == 4 * PARAMETERS and plan.memory["a batch"] > 0
    assert plan.memory["vectors of a shard"] == 4 * 30 * 32 and plan.disk == {"vectors": 4 * 100 * 32}
    assert plan.steps["texts"] == 100 and 1000 < plan.steps["tokens"] < 2000
    assert plan.steps["tokens_of_a_batch"] == 500
    assert plan.seconds is not None and 0 < plan.seconds < 60
    out = tmp_path / "out"
    assert plan.files == [
        str(out / "manifest.json"), str(out / "metrics.jsonl"),
        f"{out / 'vectors-00000.npy'} ... vectors-00003.npy (4 files)",
    ]  # fmt: skip
    assert plan_encode(config(output_dir=str(tmp_path / "o.npy"))).files == [str(tmp_path / "o.npy")]
    assert 'model_name_or_path = "' in plan.config


@pytest.mark.parametrize(
    ("keys", "sample"),
    [
        ({}, "[<s> Once upon a time there were 0 dogs]"),
        ({"prompt": "Find this:\n"}, r"<s> Find this:\n[Once upon a time there were 0 dogs]"),
        ({"pooling": "eos_token"}, "<s> Once upon a time there were 0 dogs[</s>]"),
        ({"pooling": "bos_token"}, "[<s>] Once upon a time there were 0 dogs"),
        ({"llm2vec": True, "prompt": "Find this:"}, "<s> Find this:[ Once upon a time there were 0 dogs]"),
    ],
)
def test_samples_show_what_is_pooled(keys: dict[str, object], sample: str, config: Callable[..., EncodeConfig]) -> None:
    plan = plan_encode(config(**keys))
    assert len(plan.samples) == 3
    assert plan.samples[0] == sample


def test_a_job_that_is_taken_up_is_planned_so(config: Callable[..., EncodeConfig], tmp_path: Path) -> None:
    from turncoder.encode.vectors import encode_file

    encode_file(config(shard_texts=30))
    (tmp_path / "out" / "vectors-00001.npy").unlink()
    assert any("3 of 4 shards are there" in line for line in plan_encode(config(shard_texts=30)).assumptions)
    with pytest.raises(UserError, match="normalize: False -> True"):
        plan_encode(config(shard_texts=30, normalize=True))


def test_a_merge_is_planned_from_the_model(config: Callable[..., EncodeConfig], tmp_path: Path) -> None:
    keys = {"model_name_or_path": config().model_name_or_path, "output_dir": str(tmp_path / "merged")}
    plan = plan_merge(MergeConfig(**keys, llm2vec=True))
    assert plan.parameters == {"total": PARAMETERS} and plan.disk == {"weights": 4 * PARAMETERS}
    main(["merge", keys["model_name_or_path"], "--llm2vec", "--output", keys["output_dir"]])
    written = {str(path) for path in (tmp_path / "merged").rglob("*") if path.is_file()}
    assert written == {path for path in plan.files if "tokenizer files" not in path} | {
        path for path in written if "token" in Path(path).name
    }


def test_dry_runs_write_nothing(
    config: Callable[..., EncodeConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = config()
    before = sorted(tmp_path.rglob("*"))
    model, out = str(keys.model_name_or_path), str(keys.output_dir)
    assert main(["encode", model, str(keys.input_file), "--output", out, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    parts = ("[what is pooled]", "[<s> Once", "total parameters", "memory in all", "tokens", "time", "would write")
    assert all(part in shown for part in parts), shown
    assert main(["merge", model, "--output", out, "--dry-run"]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_it_fetches(
    config: Callable[..., EncodeConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fetched = Dataset.from_dict({"text": ["Once upon a time", "there were two dogs"]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: fetched)
    assert plan_encode(config(input_file="some/set")).steps["texts"] == 2
    assert "some/set is fetched into the cache of `datasets`" in caplog.text
