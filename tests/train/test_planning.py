import contextlib
import dataclasses
import gzip
import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
from transformers import AutoModel

import turncoder
from turncoder.cli import main
from turncoder.config.stages import SimcseConfig, SupervisedConfig, load_config
from turncoder.data.pairs import open_pairs
from turncoder.errors import UserError
from turncoder.skeleton import open_unstored
from turncoder.train.contrast_trainer import ContrastTrainer
from turncoder.train.planning import lay_out_passes, plan_training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pairs(shared):
    return shared / "data" / "nli_triplets"


@pytest.fixture
def supervised(stories, pairs):
    def build(**keys):
        keys = {"train_file": str(pairs / "dev-en.jsonl"), "do_eval": False, "output_dir": "run", **keys}
        return SupervisedConfig(model_name_or_path=str(stories), **keys)

    return build


@pytest.fixture
def simcse(stories, shared):
    def build(**keys):
        text = shared / "data" / "wiki_paragraphs_en" / "wiki_en.txt"
        keys = {"train_file": str(text), "do_eval": False, "output_dir": "run", **keys}
        return SimcseConfig(model_name_or_path=str(stories), **keys)

    return build


@contextlib.contextmanager
def count_kept(model, counts):
    """Append the bytes that autograd keeps inside, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(saved):
        if saved.untyped_storage().data_ptr() not in weights:
            kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        yield
    counts.append(sum(saved.untyped_storage().nbytes() for saved in kept.values()))


def measure_steps(config, monkeypatch):
    """Train, and give the bytes that each step keeps at once; with cached gradients, those of its largest pass."""
    steps = []
    compute, embed = ContrastTrainer.compute_loss, CachedMultipleNegativesRankingLoss.embed_minibatch

    def compute_counted(self, model, *arguments, **named):
        steps.append([])
        with contextlib.nullcontext() if config.mini_batch_num_tokens else count_kept(model, steps[-1]):
            return compute(self, model, *arguments, **named)

    def embed_counted(self, *arguments, **named):
        with count_kept(self.model, steps[-1]):
            return embed(self, *arguments, **named)

    monkeypatch.setattr(ContrastTrainer, "compute_loss", compute_counted)
    monkeypatch.setattr(CachedMultipleNegativesRankingLoss, "embed_minibatch", embed_counted)
    turncoder.train(config)
    return [max(passes) for passes in steps]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts what a CPU keeps")
@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("supervised", {}),
        ("supervised", {"train_mode": "full", "query_prompt": "Find what follows:\n"}),
        ("supervised", {"gradient_accumulation_steps": 2, "attn_implementation": "eager"}),
        ("simcse", {"max_seq_length": 64}),
        ("simcse", {"max_seq_length": 200, "per_device_train_batch_size": 24}),
    ],
)
def test_activations_are_what_a_training_step_keeps(stage, keys, request, monkeypatch):
    config = request.getfixturevalue(stage)(
        **{"max_steps": 4, "per_device_train_batch_size": 32, "max_train_samples": 500, **keys}
    )
    plan = plan_training(config)
    assert plan.memory["activations"] == pytest.approx(np.mean(measure_steps(config, monkeypatch)), rel=0.25)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="counts what a CPU keeps")
def test_cached_gradients_keep_the_activations_of_a_mini_batch(supervised, monkeypatch):
    config = supervised(max_steps=3, per_device_train_batch_size=64, mini_batch_num_tokens=500)
    plan = plan_training(config)
    assert plan.memory["activations"] == pytest.approx(np.mean(measure_steps(config, monkeypatch)), rel=0.25)
    whole = plan_training(supervised(max_steps=3, per_device_train_batch_size=64))
    assert whole.memory["activations"] > 5 * plan.memory["activations"]
    assert whole.seconds < plan.seconds * 1.5


@pytest.mark.parametrize(
    ("stage", "keys"),
    [
        ("supervised", {"num_train_epochs": 1}),
        ("supervised", {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "max_train_samples": 300}),
        ("supervised", {"stop_after_n_steps": 5, "validation_file": "dev"}),
        ("simcse", {"num_train_epochs": 1, "max_train_samples": 600}),
    ],
)
def test_steps_and_tokens_are_those_of_the_run(stage, keys, request, pairs):
    if "validation_file" in keys:
        keys = {**keys, "validation_file": str(pairs / "dev-en.jsonl"), "train_file": str(pairs / "train-en.jsonl")}
    elif stage == "supervised":
        lines = (pairs / "dev-en.jsonl").read_text().splitlines()[:640]
        Path("pairs.jsonl").write_text("\n".join(lines))
        keys = {**keys, "train_file": "pairs.jsonl"}
    config = request.getfixturevalue(stage)(per_device_train_batch_size=64, max_seq_length=48, logging_steps=2, **keys)
    plan = plan_training(config)
    run = json.loads((turncoder.train(config) / "run.json").read_text())
    assert plan.steps["steps"] == run["trained"]["steps"]
    assert plan.steps["tokens"] == pytest.approx(run["tokens"], rel=0.1)
    assert plan.parameters == run["parameters"]
    if stage == "supervised" and "max_train_samples" not in keys:
        assert plan.steps["rows"] == sum(counts["rows"] for counts in run["data"]["train"].values())
    adapter = Path("run/adapter/adapter_model.safetensors").stat().st_size
    assert plan.disk["adapter/"] == pytest.approx(adapter, rel=0.1)
    written = {path.name for path in Path("run").iterdir() if not path.name.startswith(".")}
    assert {path.rstrip("/").removeprefix("run/") for path in plan.files} == written


@pytest.mark.parametrize("ending", [".jsonl", ".tsv", ".parquet", ".jsonl.gz"])
def test_rows_of_large_files_are_told_from_their_beginning(supervised, pairs, tmp_path, ending):
    from datasets import Dataset

    lines = (pairs / "train-bg.jsonl").read_text().splitlines() * 3
    rows = [json.loads(line) for line in lines]
    path = tmp_path / f"many{ending}"
    if ending == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    elif ending == ".tsv":
        path.write_text("query\tpositive\tnegative\n" + "".join("\t".join(row.values()) + "\n" for row in rows))
    elif ending == ".jsonl":
        path.write_text("\n".join(lines))
    else:
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    plan = plan_training(supervised(train_file=str(path), num_train_epochs=1))
    if ending == ".jsonl.gz":
        assert "rows" not in plan.steps
        assert any("large enough" in line for line in plan.assumptions)
    else:
        assert plan.steps["rows"] == pytest.approx(0.95 * len(rows), rel=0.05)
        assert any(line.startswith("rows: ") for line in plan.assumptions)


@pytest.mark.parametrize("key", ["train_file", "dataset_name"])
def test_a_saved_data_set_is_planned_as_its_file_is(supervised, pairs, tmp_path, key):
    saved = str(tmp_path / "saved")
    datasets.Dataset.from_json(str(pairs / "train-en.jsonl"), cache_dir=str(tmp_path)).save_to_disk(saved)
    plans = [
        plan_training(supervised(**{"train_file": None, **keys}))
        for keys in ({"train_file": str(pairs / "train-en.jsonl")}, {key: saved})
    ]
    assert plans[0].samples == plans[1].samples
    ((rows, _),) = open_pairs(file=saved, share=5)
    assert plans[1].steps["rows"] == pytest.approx(len(rows), rel=0.02)
    assert plans[0].steps["rows"] == pytest.approx(len(rows), rel=0.1)


def test_samples_show_what_is_pooled(supervised, simcse, shared):
    plan = plan_training(supervised(query_prompt="Find what follows:\n", lora_dropout=0.0))
    first = plan.samples[0].splitlines()
    assert len(plan.samples) == 3
    assert first[0].startswith("anchor: <s> Find what follows:\\n[")
    assert first[1].startswith("  positive: [<s>")
    assert first[2].startswith("  negative_1: [<s>")
    plan = plan_training(simcse(pooling="last_token", max_seq_length=16))
    assert all(sample.startswith("both views: <s>") for sample in plan.samples)
    assert all(sample.count("[") == 1 and sample.endswith("]") for sample in plan.samples)


def test_sets_of_a_folder(supervised, pairs, tmp_path):
    (tmp_path / "sets").mkdir()
    for number, name in enumerate(("msmarco_document", "quora_duplicates", "own")):
        lines = (pairs / "dev-en.jsonl").read_text().splitlines()[: 200 * (number + 1)]
        (tmp_path / "sets" / f"{name}.jsonl").write_text("\n".join(lines))
    plan = plan_training(supervised(train_file="sets", num_train_epochs=1))
    assert plan.steps["rows"] == pytest.approx(0.95 * 1200, rel=0.03)
    assert [sample.split("\n")[0] for sample in plan.samples] == [
        "msmarco_document",
        "own",
        "quora_duplicates_1",
    ]


@pytest.mark.parametrize("stage", ["simcse", "supervised"])
def test_a_dry_run_writes_nothing(stage, stories, shared, tmp_path, capsys):
    data = {"simcse": "wiki_paragraphs_en/wiki_en.txt", "supervised": "nli_triplets/train-en.jsonl"}[stage]
    (tmp_path / "cache").mkdir()
    before = sorted(os.walk(tmp_path))
    words = ["--model_name_or_path", str(stories), "--train_file", str(shared / "data" / data), "--output", "run"]
    assert main([stage, *words, "--dry-run"]) == 0
    assert sorted(os.walk(tmp_path)) == before
    assert os.environ["TURNCODER_CACHE"] == str(tmp_path / "cache")
    out = capsys.readouterr().out
    parts = ("trainable parameters", "memory: activations", "run/adapter/", "epochs", "tokens per step", "[<s>")
    assert all(part in out for part in parts)


def test_every_file_of_others_is_planned_without_the_hub(shared, pairs, tmp_path, capsys):
    files = sorted(shared.glob("configs/*/train_configs/s*/*.json"))
    files = [file for file in files if file.parent.name in ("simcse", "supervised")]
    assert files
    before = sorted(os.walk(tmp_path))
    for file in files:
        words = ["--train_file", str(pairs / "dev-en.jsonl"), "--dry-run"]
        assert main([file.parent.name, str(file), *words]) == 0
        out = capsys.readouterr().out
        assert "1,000" in out  # steps
        assert "not seen: model_name_or_path" in out
    assert sorted(os.walk(tmp_path)) == before


def test_a_run_is_planned_on_the_model_of_another(supervised, simcse, stories):
    first = turncoder.train(supervised(max_steps=1, query_prompt="Find:\n", pooling="eos_token", max_seq_length=32))
    shutil.rmtree("cache")
    Path("run/model/model.safetensors").unlink()  # which no plan needs
    keys = {field: value for field, value in vars(simcse()).items() if field != "model_name_or_path"}
    plan = plan_training(SimcseConfig(**{**keys, "model_name_or_path": str(first)}))
    assert plan.parameters["total"] - plan.parameters["trainable"] == 260_032
    assert "[</s>]" in plan.samples[0] or "last one pooled" in plan.samples[0]
    assert plan.steps["tokens_per_step"] > 2 * 8 * 33  # the folder reads more than what it was trained on
    assert not Path("cache").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train_file": "./gone.jsonl"}, r"gone\.jsonl"),
        ({"train_file": "odd.jsonl"}, r"odd\.jsonl, line 3"),
        ({"train_file": "empty.jsonl"}, r"empty\.jsonl"),
        ({"validation_file": "odd.jsonl"}, r"odd\.jsonl, line 3"),
        ({"query_prompt": "Find: "}, "does not stay apart"),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 500}, "gradient_accumulation_steps"),
        ({"lora_target_modules": ("nothing",)}, "lora_target_modules"),
        ({"sts_file": "./gone.tsv"}, "gone"),
    ],
)
def test_what_is_wrong_is_named_as_in_the_users_files(supervised, tmp_path, keys, message):
    (tmp_path / "empty.jsonl").touch()
    good = '{"anchor": "a", "positive": "b"}\n'
    (tmp_path / "odd.jsonl").write_text(good + good + '{"anchor": "a", "other": "b"}\n')
    with pytest.raises(UserError, match=message) as caught:
        plan_training(supervised(**keys))
    assert "/tmp" not in str(caught.value).replace(str(tmp_path), "")


def test_a_hub_dataset_that_cannot_be_seen_is_said(supervised, simcse):
    for build in (supervised, simcse):
        plan = plan_training(build(train_file=None, dataset_name="nobody/nothing"))
        assert plan.parameters
        assert "tokens" not in plan.steps
        assert any("nobody/nothing" in line for line in plan.unseen)


@pytest.mark.parametrize("kind", ["model", "folder", "adapter"])
@pytest.mark.parametrize("pooling", [None, "cls", "weighted_mean", "eos_token"])
def test_the_skeleton_reads_as_the_encoder_does(supervised, stories, tmp_path, kind, pooling):
    keys = {"pooling": pooling, "max_seq_length": 24}
    if kind != "model":
        save = "never" if kind == "adapter" else "always"
        first = supervised(max_steps=1, per_device_train_batch_size=4, output_dir="first", save_merged=save)
        keys["model_name_or_path"] = str(turncoder.train(first))
    config = dataclasses.replace(supervised(), **keys)
    skeleton = open_unstored(config)
    encoder = turncoder.load_encoder(config.model_name_or_path, pooling=pooling, max_seq_length=24, device="cpu")
    assert skeleton[1].get_config_dict() == encoder[1].get_config_dict()
    assert skeleton.max_seq_length == encoder.max_seq_length == 24
    texts = ["Lily had a red ball.", "a " * 40]
    read, expected = skeleton.preprocess(texts, prompt="Say:\n"), encoder.preprocess(texts, prompt="Say:\n")
    assert read.pop("prompt_length", None) == expected.pop("prompt_length", None)
    assert all(torch.equal(read[name], expected[name]) for name in ("input_ids", "attention_mask"))


def test_a_large_model_takes_no_memory_to_plan(shared, pairs, tmp_path):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=32000).save_pretrained(tmp_path / "large")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "tokenizers" / "mistral-7b-v1" / file, tmp_path / "large")
    file = shared / "configs" / "llm2vec" / "train_configs" / "supervised" / "MetaLlama3.json"
    words = ["--model_name_or_path", str(tmp_path / "large"), "--train_file", str(pairs / "dev-en.jsonl")]
    plan = plan_training(load_config(SupervisedConfig, file, [*words, "--adapters", "[]"]))
    assert plan.parameters["trainable"] == 41_943_040
    assert 12.5 < plan.memory["weights"] / 2**30 < 14  # bfloat16, the adapter float32
    assert "model/" not in plan.disk


def test_a_batch_is_laid_out_by_length():
    length_NC = np.array([[4, 2], [1, 2], [3, 2], [2, 2]])
    assert lay_out_passes(length_NC, 4, 1000, cached=False) == [(4, 4), (4, 2)]
    assert lay_out_passes(length_NC, 4, 8, cached=False) == [(2, 4), (2, 2), (4, 2)]
    assert lay_out_passes(length_NC, 4, 6, cached=True) == [(1, 4), (3, 3), (3, 2), (1, 2)]
    assert sum(rows for rows, _ in lay_out_passes(length_NC, 10, 8, cached=True)) == 20


def test_a_teacher_is_planned(supervised, stories, tmp_path, monkeypatch):
    for name in ("turncoder.plan", "turncoder.train.planning"):  # a busy machine has another rate each time
        monkeypatch.setattr(f"{name}.measure_rate", lambda dtype: (1e10, "this CPU"))
    alone, taught = plan_training(supervised()), plan_training(supervised(teacher_name_or_path=str(stories)))
    assert taught.parameters["teacher's"] == AutoModel.from_pretrained(stories).num_parameters()
    assert taught.seconds > alone.seconds
    assert any("reads every text once" in line and "about" in line for line in taught.assumptions)
    assert (
        "teacher's"
        not in plan_training(supervised(teacher_name_or_path=str(stories), do_train=False, do_eval=True)).parameters
    )
    unseen = plan_training(supervised(teacher_name_or_path="no/such-teacher")).unseen
    assert any("no/such-teacher" in line for line in unseen)
    with pytest.raises(UserError, match="teacher_name_or_path"):
        plan_training(supervised(teacher_name_or_path=str(tmp_path)))
