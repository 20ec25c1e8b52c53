import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig

from turncoder.cli import main
from turncoder.config.stages import MntpConfig
from turncoder.errors import UserError
from turncoder.model.activations import count_activations, count_passes
from turncoder.model.adapters import attach_lora, count_parameters
from turncoder.plan import measure_rate, tell_bytes, tell_time
from turncoder.skeleton import build_unstored
from turncoder.train.course import count_steps, tell_limit
from turncoder.train.planning import plan_training
from turncoder.train.stage import will_merge

LLAMA3_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
)
SMALL = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=64,
    tie_word_embeddings=True,
)


def configure(**keys):
    return MntpConfig(**{"model_name_or_path": "m", "train_file": "t.txt", "lora_r": 16, **keys})


@pytest.fixture
def story_config(stories, stories_text, tmp_path, monkeypatch):
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))

    def build(**keys):
        keys = {"model_name_or_path": str(stories), "train_file": str(stories_text), "max_seq_length": 128, **keys}
        return MntpConfig(**keys)

    return build


def test_parameters_are_counted_over_the_whole_model():
    # Llama-3-8B has 8,030,261,248; a Korean run of LLM2Vec logged 567,279,616 trainable ones: the adapter and the head
    model = build_unstored(LLAMA3_8B, configure())
    assert count_parameters(model) == (41_943_040, 8_030_261_248 + 41_943_040)
    model = build_unstored(LLAMA3_8B, configure(train_head=True))
    assert count_parameters(model)[0] == 567_279_616
    model = build_unstored(LLAMA3_8B, configure(train_mode="full"))
    assert count_parameters(model)[0] == 8_030_261_248 - 128_256 * 4096
    assert all(parameter.is_meta for parameter in model.parameters())


def test_parameters_of_bg2vec():
    # BgGPT-7B: Bg2Vec printed 41,943,040 of 7,177,179,136, leaving out the head of 38,000 x 4096
    mistral = MistralConfig(num_key_value_heads=8, vocab_size=38_000)
    model = build_unstored(mistral, configure())
    assert count_parameters(model) == (41_943_040, 7_177_179_136 + 38_000 * 4096)


def test_a_tied_head_is_counted_once_and_stays_frozen():
    trainable, total = count_parameters(build_unstored(SMALL, configure()))
    plain = LlamaForCausalLM(SMALL)
    assert total == sum(p.numel() for p in plain.parameters()) + trainable


@pytest.mark.parametrize("squares", [False, True])
def test_activations_are_what_autograd_keeps(squares):
    rows, length = 3, 24
    counted = count_activations(build_unstored(SMALL, configure()), rows, length, squares=squares)
    model = LlamaForCausalLM._from_config(SMALL, attn_implementation="eager" if squares else "sdpa").train()
    backbone = attach_lora(model.model, r=16, alpha=None, dropout=0.05, targets=None)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(saved):
        if saved.untyped_storage().data_ptr() not in weights:
            kept[saved.untyped_storage().data_ptr()] = saved
        return saved

    mask = torch.zeros(rows, 1, length, length)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = backbone(input_ids=torch.zeros(rows, length, dtype=torch.long), attention_mask=mask, use_cache=False)
    real = sum(saved.untyped_storage().nbytes() for saved in kept.values())
    del out
    assert counted == pytest.approx(real, rel=0.15)


def test_passes_add_up_from_two_traces():
    model = build_unstored(SMALL, configure())
    passes = [(4, 48), (6, 31), (12, 16)]
    counted = count_passes(model, passes, squares=True, recompute=False)
    assert counted == pytest.approx(sum(count_activations(model, *one, squares=True) for one in passes), rel=0.05)
    assert count_passes(model, passes, squares=True, recompute=True) < counted / 2


@pytest.mark.parametrize(
    ("keys", "rows", "expected"),
    [
        ({"num_train_epochs": 3}, 100, (38, 38)),
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 2}, 100, (19, 19)),
        ({"max_steps": 7}, 100, (7, 7)),
        ({"max_steps": 7, "stop_after_n_steps": 5}, 100, (5, 5)),
        ({"stop_after_n_steps": 10}, 100, (10, 10)),
        ({"stop_after_n_steps": 10, "as_llm2vec": True}, 100, (10, 38)),
        ({"stop_after_n_steps": 10}, None, (10, 10)),
        ({"stop_after_n_steps": None}, None, (0, 0)),
    ],
)
def test_steps(keys, rows, expected):
    assert count_steps(configure(**keys), rows) == expected


def test_a_limit_that_nobody_set_is_said():
    assert "stop_after_n_steps = 10,000" in str(tell_limit(configure(max_steps=20_000), 100))
    assert "25,000 steps" in str(tell_limit(configure(num_train_epochs=2), 100_000))
    for keys in (
        {"max_steps": 10_000},
        {"max_steps": 20_000, "stop_after_n_steps": 1000},
        {"stop_after_n_steps": None},
    ):
        assert tell_limit(configure(**keys), 100) is None


def test_bg2vecs_schedule():
    # 50,000 blocks, batch 32, 3 epochs: laid out for 4,689 steps there (whole batches an epoch), stopped at 1000
    config = configure(per_device_train_batch_size=32, stop_after_n_steps=1000, as_llm2vec=True)
    steps, scheduled = count_steps(config, 50_000)
    assert steps == 1000
    assert scheduled == pytest.approx(4689, abs=2)


def test_merging():
    assert will_merge(configure(), 10**9)
    assert not will_merge(configure(), 10**11)
    assert will_merge(configure(save_merged="always"), 10**11)
    assert not will_merge(configure(save_merged="never"), 1)
    assert will_merge(configure(train_mode="full", save_merged="never"), 1)


def test_a_plan_of_a_small_run(story_config):
    plan = plan_training(story_config(max_steps=20, mlm_probability=0.2))
    assert not plan.unseen
    assert plan.parameters["total"] == 260_032 + plan.parameters["trainable"]
    assert plan.memory["gradients"] == 4 * plan.parameters["trainable"]
    assert plan.memory["activations"] > plan.memory["weights"] > 4 * 260_032 - 1
    assert plan.steps["steps"] == 20
    assert plan.steps["predicted"] == pytest.approx(0.2 * plan.steps["tokens"], abs=1)
    assert plan.disk["model/"] == 4 * 260_032
    assert plan.seconds > 0
    assert len(plan.samples) == 3
    assert all("->" in sample for sample in plan.samples)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"save_strategy": "epoch", "num_train_epochs": 2.5}, 3),
        ({"save_strategy": "epoch", "save_total_limit": 2}, 2),
        ({"save_steps": 0.25, "max_steps": 20}, 4),
        ({"save_strategy": "best", "eval_strategy": "steps"}, 1),
    ],
)
def test_checkpoints_are_counted(story_config, keys, count):
    disk = plan_training(story_config(stop_after_n_steps=None, **keys)).disk
    assert any(name.startswith(f"checkpoints ({count} x") for name in disk), disk


def test_no_checkpoints_are_counted_where_steps_are_not_known(story_config):
    keys = {"train_file": None, "dataset_name": "who/knows", "stop_after_n_steps": None, "save_steps": 0.1}
    assert plan_training(story_config(**keys)).steps["steps"] == 0


def test_the_rows_that_are_told_are_the_rows_that_training_has(story_config):
    from turncoder.data.tokenizer import load_tokenizer
    from turncoder.train.text import open_blocks

    config = story_config()
    told = plan_training(config).steps["rows"]
    train, _ = open_blocks(config, load_tokenizer(config.model_name_or_path), 128)
    assert told == pytest.approx(len(train), rel=0.03)


def test_a_small_corpus_is_counted(story_config, tmp_path):
    text = tmp_path / "few.txt"
    text.write_text("".join(f"Once upon a time there was a girl named number {n}.\n" for n in range(60)))
    plan = plan_training(story_config(train_file=str(text), line_by_line=True))
    assert plan.steps["rows"] in range(50, 61)
    assert not any(line.startswith("rows:") for line in plan.assumptions)


def test_samples_show_what_is_put_in_and_what_is_predicted(story_config, tmp_path):
    text = tmp_path / "one.txt"
    text.write_text("".join(f"Lily found a big red ball number {n}.\n" for n in range(40)))
    every = story_config(train_file=str(text), mlm_probability=1.0, data_collator_type="all_mask", line_by_line=True)
    sample = plan_training(every).samples[0]
    assert sample.count("->") > 5
    assert "Lily found" not in sample
    clean = story_config(train_file=str(text), data_collator_type="unmasked", bidirectional=False, line_by_line=True)
    assert "[ big-> big]" in plan_training(clean).samples[0]


def test_checkpointing_takes_less_memory_and_more_time(story_config):
    plain, spared = (plan_training(story_config(gradient_checkpointing=way, max_steps=50)) for way in (False, True))
    assert spared.memory["activations"] < plain.memory["activations"] / 2


def test_a_dry_run_writes_nothing(stories, stories_text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    words = ["--model_name_or_path", str(stories), "--train_file", str(stories_text), "--output", "run", "--dry-run"]
    assert main(["mntp", *words]) == 0
    assert list(tmp_path.iterdir()) == []
    out = capsys.readouterr().out
    assert all(part in out for part in ("trainable parameters", "memory: activations", "run/adapter/", "->", "epochs"))


def test_every_file_of_others_is_planned_without_the_hub(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = sorted((shared / "configs").glob("*/train_configs/mntp/*.json"))
    files.append(shared / "configs" / "bg2vec" / "model_configurations" / "bggpt-7b.json")
    start = time.perf_counter()
    for file in files:
        assert main(["mntp", str(file), "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "lora_r = 16" in out
        assert "1,000" in out  # steps
        assert "16,384" in out  # tokens per step
        assert out.count("not seen: ") >= 1
    assert time.perf_counter() - start < 30
    assert list(tmp_path.iterdir()) == []


def test_the_model_of_a_file_of_others_is_planned_where_its_config_is_at_hand(shared, stories_text, tmp_path):
    LLAMA3_8B.save_pretrained(tmp_path / "llama3")
    file = shared / "configs" / "llm2vec" / "train_configs" / "mntp" / "MetaLlama3.json"
    from turncoder.config.stages import load_config

    words = ["--model_name_or_path", str(tmp_path / "llama3"), "--train_file", str(stories_text)]
    words += ["--tokenizer_name", str(shared / "tokenizers" / "mistral-7b-v1")]
    plan = plan_training(load_config(MntpConfig, file, words))
    assert plan.parameters["trainable"] == 41_943_040
    assert 14 < plan.memory["weights"] / 2**30 < 16  # bfloat16, the adapter float32
    assert 3 < plan.memory["activations"] / 2**30 < 20
    assert not any(key == "model/" for key in plan.disk)


@pytest.mark.parametrize("key", ["model_name_or_path", "train_file"])
def test_a_path_that_is_wrong_is_an_error(story_config, key):
    with pytest.raises(UserError, match="gone"):
        plan_training(story_config(**{key: "./gone"}))


def test_what_cannot_be_read_is_an_error(story_config, tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty\.txt"):
        plan_training(story_config(train_file=str(tmp_path / "empty.txt")))
    with pytest.raises(UserError, match="max_seq_length"):
        plan_training(story_config(max_seq_length=4096))


def test_a_hub_dataset_that_cannot_be_seen_is_said(story_config, stories):
    plan = plan_training(
        story_config(train_file=None, dataset_name="wikitext", dataset_config_name="wikitext-2-raw-v1")
    )
    assert plan.parameters
    assert any("wikitext" in line for line in plan.unseen)


def test_numbers_for_people():
    assert (tell_time(0.2), tell_time(70), tell_time(600), tell_time(12_000)) == (
        "about 1 s",
        "about 70 s",
        "about 10 min",
        "about 3 h 20 min",
    )
    assert (tell_bytes(2**20), tell_bytes(3 * 2**29)) == ("1.0 MiB", "1.5 GiB")


def test_the_speed_of_this_machine():
    rate, device = measure_rate(torch.float32)
    assert 1e8 < rate < 1e16
    assert device


def test_files(tmp_path, stories, stories_text):
    words = {"model_name_or_path": str(stories), "train_file": str(stories_text), "output_dir": str(tmp_path / "r")}
    names = [Path(name).name for name in plan_training(MntpConfig(**words, max_steps=2)).files]
    assert names == ["run.json", "config.toml", "metrics.jsonl", "checkpoints", "adapter", "model", "report.html"]
