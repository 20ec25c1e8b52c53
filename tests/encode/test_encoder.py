"""load_encoder: whatever a name stands for, one call opens it, proven bidirectional or openly causal."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    GPTNeoConfig,
    Lfm2Config,
    LlamaConfig,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from turncoder.cli import main
from turncoder.config.encoding import MergeConfig
from turncoder.encode.encoder import check_flags, load_encoder
from turncoder.encode.texts import encode_texts
from turncoder.errors import ConversionError, UserError
from turncoder.merging import merge_to_folder
from turncoder.model.attention import inspect_attention

TEXTS = ["Once upon a time there was a dog", "a", "The cat sat on the mat and looked at the bird"]
SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SMALL, intermediate_size=48, max_position_embeddings=128)
ENCODERS = {
    "bert": BertConfig(**SMALL, intermediate_size=48, pad_token_id=0),
    "deberta": DebertaV2Config(
        **SMALL, intermediate_size=48, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"]
    ),
    "modernbert": ModernBertConfig(**SMALL, intermediate_size=48, local_attention=8, pad_token_id=0),
}
DECODERS = {
    "llama": LLAMA,
    "gpt2": GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "gpt_neo": GPTNeoConfig(
        vocab_size=512, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        max_position_embeddings=128,
    ),
}  # fmt: skip


def adapter(base: Path, folder: Path, seed: int, targets: tuple[str, ...] = ("q_proj", "v_proj")) -> Path:
    """Write a LoRA that changes something, and names its base model."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules=list(targets), task_type="FEATURE_EXTRACTION")
    model = get_peft_model(AutoModel.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def pool_by_hand(encoder: SentenceTransformer, texts: list[str]) -> np.ndarray:
    rows = []
    for text in texts:
        ids = encoder.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rows.append(encoder.transformers_model(input_ids=ids).last_hidden_state[0].mean(0))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_plain_models_open_proven(name: str, make_model: Callable[..., Path]) -> None:
    folder = make_model({**ENCODERS, **DECODERS}[name])
    encoder = load_encoder(str(folder))
    assert type(encoder) is SentenceTransformer and type(encoder[0]) is Transformer
    assert inspect_attention(encoder.transformers_model).verdict == "bidirectional"
    np.testing.assert_allclose(encoder.encode(TEXTS), pool_by_hand(encoder, TEXTS), atol=1e-5)


def test_a_decoder_that_stays_causal_says_so(make_model: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    encoder = load_encoder(str(make_model(LLAMA)), bidirectional=False)
    assert "attention is causal" in caplog.text
    assert inspect_attention(encoder.transformers_model).verdict == "causal"


def test_a_folder_that_automodel_opens_causal_is_mended(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(DECODERS["gpt_neo"])
    assert main(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 0
    assert inspect_attention(AutoModel.from_pretrained(tmp_path / "merged")).verdict == "causal"
    encoder = load_encoder(str(tmp_path / "merged"))
    assert inspect_attention(encoder.transformers_model).verdict == "bidirectional"
    np.testing.assert_allclose(encoder.encode(TEXTS), load_encoder(str(folder)).encode(TEXTS), atol=1e-5)


def test_what_was_trained_bidirectional_is_not_opened_causal(make_model: Callable[..., Path], tmp_path: Path) -> None:
    main(["merge", str(make_model(LLAMA)), "--output", str(tmp_path / "merged")])
    with pytest.raises(UserError, match="trained bidirectional"):
        load_encoder(str(tmp_path / "merged"), bidirectional=False)


@pytest.mark.parametrize("merge", [True, False])
def test_a_stack_of_adapters_from_any_side(merge: bool, make_model: Callable[..., Path], tmp_path: Path) -> None:
    base = make_model(LLAMA)
    first, second = adapter(base, tmp_path / "a1", 1), adapter(base, tmp_path / "a2", 2)
    plain = load_encoder(str(base)).encode(TEXTS)
    both = load_encoder(str(base), adapters=[str(first), str(second)], merge=merge).encode(TEXTS)
    assert np.abs(both - plain).max() > 1e-2
    np.testing.assert_allclose(load_encoder(str(first), adapters=[str(second)]).encode(TEXTS), both, atol=1e-5)
    one = load_encoder(str(first)).encode(TEXTS)
    assert np.abs(one - both).max() > 1e-2 and np.abs(one - plain).max() > 1e-2
    out = tmp_path / "merged"
    assert main(["merge", str(base), "--adapters", str(first), str(second), "--output", str(out)]) == 0
    np.testing.assert_allclose(SentenceTransformer(str(out)).encode(TEXTS), both, atol=1e-5)
    assert [one["name"] for one in json.loads((out / "turncoder.json").read_text())["parents"]] == [
        str(base), str(first), str(second)
    ]  # fmt: skip


def test_a_run_that_kept_only_its_adapter(stories: Path, stories_text: Path, tmp_path: Path) -> None:
    words = ["--model_name_or_path", stories, "--train_file", stories_text, "--max_seq_length", "32", "--max_steps"]
    words += ["3", "--max_train_samples", "16", "--max_eval_samples", "4", "--learning_rate", "0.01"]
    for name, save in (("whole", "always"), ("adapter", "never")):
        flags = [*words, "--output", tmp_path / name, "--save_merged", save]
        assert main(["mntp", *map(str, flags)]) == 0
    assert not (tmp_path / "adapter" / "model").exists()
    whole, only = (load_encoder(str(tmp_path / name)) for name in ("whole", "adapter"))
    np.testing.assert_allclose(only.encode(TEXTS), whole.encode(TEXTS), atol=1e-5)
    plain = SentenceTransformer(str(tmp_path / "whole" / "model"))
    np.testing.assert_array_equal(whole.encode(TEXTS), plain.encode(TEXTS))


def test_poolings_under_either_padding_side(make_model: Callable[..., Path]) -> None:
    folder = make_model(LLAMA)
    for pooling in ("mean", "weighted_mean", "eos_token", "last_token", "bos_token", "cls"):
        encoder = load_encoder(str(folder), pooling=pooling)
        alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
        old = version("sentence-transformers") < "6.2" and pooling == "weighted_mean"  # which weighs from column 0
        for side in ("right",) if old else ("right", "left"):
            encoder.tokenizer.padding_side = side
            np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5, err_msg=f"{pooling} {side}")


def test_the_end_of_text_is_added_once_and_survives_truncation(make_model: Callable[..., Path], tmp_path: Path) -> None:
    encoder = load_encoder(str(make_model(LLAMA)), pooling="eos_token", max_seq_length=8)
    for text in ("a dog", "a dog and a cat and a bird and a fish"):
        ids = encoder.preprocess([text])["input_ids"][0].tolist()
        assert ids[0] == 1 and ids[-1] == 2 and ids.count(2) == 1 and len(ids) <= 8
    encoder.save(str(tmp_path / "saved"))
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "saved")).encode(TEXTS), encoder.encode(TEXTS))


def test_a_chat_template_is_an_option_and_never_a_surprise(make_model: Callable[..., Path], tmp_path: Path) -> None:
    plain = load_encoder(str(make_model(LLAMA))).encode(TEXTS)
    folder = make_model(LLAMA, chat_template="{% for m in messages %}user: {{ m['content'] }} end{% endfor %}")
    np.testing.assert_allclose(load_encoder(str(folder)).encode(TEXTS), plain, atol=1e-6)
    assert main(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 0
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "merged")).encode(TEXTS), plain, atol=1e-5)
    templated = load_encoder(str(folder), chat_template=True).encode(TEXTS)
    assert np.abs(templated - plain).max() > 1e-2
    assert main(["merge", str(folder), "--chat_template", "--output", str(tmp_path / "chat")]) == 0
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "chat")).encode(TEXTS), templated, atol=1e-5)


def test_a_folder_of_others_stays_what_it_is(make_model: Callable[..., Path], tmp_path: Path) -> None:
    module = Transformer(str(make_model(LLAMA)))
    module.tokenizer.pad_token = "</s>"
    theirs = SentenceTransformer(modules=[module, Pooling(32, "lasttoken")])
    theirs.save(str(tmp_path / "theirs"))
    np.testing.assert_allclose(load_encoder(str(tmp_path / "theirs")).encode(TEXTS), theirs.encode(TEXTS), atol=1e-6)
    turned = load_encoder(str(tmp_path / "theirs"), bidirectional=True, pooling="mean")
    assert inspect_attention(turned.transformers_model).verdict == "bidirectional"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pooling", "pooling = 'max' is none of mean"),
        ("missing", "there is no model folder"),
        ("empty", "no config.json"),
        ("no weights", "no weights"),
        ("no tokenizer", "tokenizer"),
        ("other adapter", "does not fit"),
        ("untrained adapter", "changes nothing"),
        ("nameless adapter", "does not name its base model"),
        ("encoder-decoder", "encoder-decoder"),
        ("chat", "has none"),
        ("remote code", "--trust_remote_code"),
        ("part of a model", "lack"),
    ],
)
def test_what_is_wrong_is_said(what: str, message: str, make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder, options = tmp_path / "model", OPTIONS.get(what, {})
    if what == "encoder-decoder":
        make_model(T5Config(vocab_size=512, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4))
    elif what == "empty":
        folder.mkdir()
    elif what != "missing":
        make_model(LLAMA)
        break_model(what, folder)
    if what.endswith("adapter"):
        options = {"adapters": [str(make_bad_adapter(what, folder, tmp_path / "a", make_model))]}
    if what == "nameless adapter":
        folder, options = tmp_path / "a", {}
    with pytest.raises(UserError, match=message):
        load_encoder(str(folder), **options)


OPTIONS: dict[str, Any] = {"pooling": {"pooling": "max"}, "chat": {"chat_template": True}}


def break_model(what: str, folder: Path) -> None:
    if what == "no weights":
        (folder / "model.safetensors").unlink()
    elif what == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif what == "remote code":
        config = {"model_type": "unheard-of", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text("raise SystemExit('ran')")
    elif what == "part of a model":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3, "layer_types": None}))


def make_bad_adapter(what: str, base: Path, folder: Path, make_model: Callable[..., Path]) -> Path:
    if what == "other adapter":
        other = make_model(GPT2Config(vocab_size=512, n_embd=32, n_layer=1, n_head=4), "other")
        return adapter(other, folder, 0, ("c_attn",))
    if what == "nameless adapter":
        path = adapter(base, folder, 0) / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))
        return folder
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(AutoModel.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("gpus", "wrong", "right"), [(0, "cuda", "cpu"), (0, "cuda:0", "cpu"), (1, "cuda:1", "cuda:0")]
)
def test_a_device_that_is_not_there_is_refused_at_once(
    gpus: int, wrong: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=rf"device = '{wrong}' is not available on this machine"):
        check_flags(None, None, wrong, None)
    check_flags(None, None, right, None)


def test_a_hybrid_is_refused_by_its_layers(make_model: Callable[..., Path]) -> None:
    config = Lfm2Config(
        vocab_size=512, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    folder = str(make_model(config))
    with pytest.raises(ConversionError, match=r"layers\.0: back only"):
        load_encoder(folder)
    assert load_encoder(folder, allow_partial=True).encode(TEXTS).shape == (3, 32)
    assert load_encoder(folder, bidirectional=False).encode(TEXTS).shape == (3, 32)


def test_no_beginning_no_bos_pooling(make_model: Callable[..., Path]) -> None:
    folder = make_model(LLAMA)
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**state, "post_processor": None}))
    with pytest.raises(UserError, match="puts no BOS"):
        load_encoder(str(folder), pooling="bos_token")
    assert load_encoder(str(folder), pooling="eos_token").preprocess(["a"])["input_ids"][0, -1] == 2


def test_flags_reach_a_model_folder_too(make_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_model(LLAMA, chat_template="{{ messages }}")
    main(["merge", str(folder), "--output", str(tmp_path / "merged")])
    merged = str(tmp_path / "merged")
    assert load_encoder(merged, pooling="eos_token").preprocess(["a dog"])["input_ids"][0, -1] == 2
    assert load_encoder(merged, max_seq_length=1000).max_seq_length == 128
    with pytest.raises(UserError, match="name its base model"):
        load_encoder(merged, chat_template=True)
    theirs = load_encoder(merged)
    theirs.append(Normalize())
    theirs.save(str(tmp_path / "theirs"))
    with pytest.raises(UserError, match="leave the flag out"):
        load_encoder(str(tmp_path / "theirs"), llm2vec=True)


def test_prompts_survive_a_merge(make_model: Callable[..., Path], tmp_path: Path) -> None:
    encoder = load_encoder(str(make_model(LLAMA)))
    encoder.prompts, encoder.default_prompt_name = {"query": "Find this:\n"}, "query"
    encoder.save(str(tmp_path / "saved"))
    main(["merge", str(tmp_path / "saved"), "--output", str(tmp_path / "merged")])
    merged = SentenceTransformer(str(tmp_path / "merged"))
    assert merged.default_prompt_name == "query"
    np.testing.assert_allclose(merged.encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_models_of_roberta_s_kind_have_fewer_positions_than_they_say(make_model: Callable[..., Path]) -> None:
    config = RobertaConfig(**SMALL, intermediate_size=48, max_position_embeddings=40, pad_token_id=1)
    encoder = load_encoder(str(make_model(config)))
    assert encoder.max_seq_length == 38
    assert np.isfinite(encoder.encode(["a dog " * 100])).all()


@pytest.mark.parametrize("file", ["adapter_config.json", "modules.json", "llm2vec_config.json"])
def test_broken_files_of_a_model_are_named(file: str, make_model: Callable[..., Path]) -> None:
    folder = make_model(LLAMA)
    (folder / file).write_text("{")
    with pytest.raises(UserError, match="broken JSON"):
        load_encoder(str(folder))


def put_on_hub(cache: Path, folder: Path, name: str, revision: str) -> None:
    """Lay a folder into a hub cache, as a download of that revision would."""
    home, commit = (
        cache / f"models--{name.replace('/', '--')}",
        f"{revision:0<40}".replace("v", "a").replace("main", "b"),
    )
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / revision).write_text(commit)


def test_a_hub_adapter_has_a_revision_of_its_own(make_model: Callable[..., Path], tmp_path: Path) -> None:
    base, cache = make_model(LLAMA), tmp_path / "hub"
    first, second = adapter(base, tmp_path / "a1", 1), adapter(base, tmp_path / "a2", 2)
    (second / "llm2vec_config.json").write_text('{"pooling_mode": "weighted_mean", "doc_max_length": 7}')
    put_on_hub(cache, first, "someone/lora", "main")
    put_on_hub(cache, second, "someone/lora", "v2")
    known: dict[str, Any] = {"cache_dir": str(cache)}

    def encode(name: object, *adapters: str, **options: Any) -> np.ndarray:
        return load_encoder(str(name), adapters=adapters, **known, **options).encode(TEXTS)

    one, two = encode(base, str(first)), encode(base, str(second))
    assert np.abs(one - two).max() > 1e-2
    np.testing.assert_array_equal(encode(base, "someone/lora"), one)
    np.testing.assert_array_equal(encode(base, "someone/lora@v2"), two)
    opened = load_encoder(str(base), adapters=["someone/lora@v2"], **known)
    assert (opened[0].pooling, opened[0].doc_max_length) == ("weighted_mean", 7)
    np.testing.assert_array_equal(encode("someone/lora"), one)  # which names its base model
    np.testing.assert_array_equal(encode("someone/lora", revision="v2"), two)
    with pytest.raises(UserError, match=r"someone/lora@v3 cannot be opened"):
        encode(base, "someone/lora@v3")
    with pytest.raises(UserError, match=r"give someone/lora and --model_revision v2"):
        encode("someone/lora@v2")


def test_a_base_is_opened_at_the_revision_that_was_trained_on(make_model: Callable[..., Path], tmp_path: Path) -> None:
    from turncoder.model.source import find_source

    lora = adapter(make_model(LLAMA), tmp_path / "run" / "adapter", 1)
    config = {"model_name_or_path": "someone/model", "model_revision": "v2", "adapters": [], "tokenizer_name": None}
    record = {"config": {**config, "bidirectional": True}}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    source = find_source(str(tmp_path / "run"), cache_dir=str(tmp_path / "hub"))
    assert (source.base, source.revision, source.adapters) == ("someone/model", "v2", (str(lora),))
    path = lora / "adapter_config.json"
    named = {"base_model_name_or_path": "someone/model", "revision": "v3"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **named}))
    source = find_source(str(lora), cache_dir=str(tmp_path / "hub"))
    assert (source.base, source.revision, source.adapters) == ("someone/model", "v3", (str(lora),))


@pytest.mark.parametrize(("mode", "named"), [("weightedmean", "weighted_mean"), ("lasttoken", "last_token")])
def test_llm2vec_takes_over_what_a_folder_of_others_says(
    mode: str, named: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    module = Transformer(str(make_model(LLAMA)), max_seq_length=16)
    module.tokenizer.pad_token = "</s>"
    theirs = SentenceTransformer(modules=[module, Pooling(32, mode)], prompts={"query": "Find:\n"})
    theirs.save(str(tmp_path / "theirs"))
    encoder = load_encoder(str(tmp_path / "theirs"), llm2vec=True)
    assert (encoder[0].pooling, encoder.max_seq_length) == (named, 16)
    assert encoder[1].pooling_mode == mode and encoder.prompts["query"] == "Find:\n"
    told = load_encoder(str(tmp_path / "theirs"), llm2vec=True, pooling="mean", max_seq_length=8)
    assert (told[0].pooling, told[1].pooling_mode, told.max_seq_length) == ("mean", "mean", 8)
    (tmp_path / "theirs" / "llm2vec_config.json").write_text('{"pooling_mode": "bos_token", "max_length": 12}')
    written = load_encoder(str(tmp_path / "theirs"))
    assert (written[0].pooling, written.max_seq_length) == ("bos_token", 12)


def test_a_pooling_that_llm2vec_does_not_know_is_refused(make_model: Callable[..., Path], tmp_path: Path) -> None:
    module = Transformer(str(make_model(LLAMA)))
    module.tokenizer.pad_token = "</s>"
    SentenceTransformer(modules=[module, Pooling(32, "max")]).save(str(tmp_path / "theirs"))
    with pytest.raises(UserError, match="pools by max, which LLM2Vec does not know; choose a --pooling"):
        load_encoder(str(tmp_path / "theirs"), llm2vec=True)
    assert load_encoder(str(tmp_path / "theirs"), llm2vec=True, pooling="mean")[0].pooling == "mean"


@pytest.mark.parametrize("pooling", ["bos_token", "cls"])
def test_the_first_token_stays_the_first_behind_a_prompt(stories: Path, tmp_path: Path, pooling: str) -> None:
    prompt, text = "Say it again\n", "A dog ran home."
    encoder = load_encoder(str(stories), pooling=pooling, device="cpu")
    features = encoder.preprocess([prompt + text])
    model = encoder.transformers_model
    assert model is not None
    with torch.no_grad():
        first = model(input_ids=features["input_ids"]).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(encode_texts(encoder, [text], prompt=prompt)[0], first, atol=1e-5)
    np.testing.assert_allclose(encoder.encode([text], prompt=prompt)[0], first, atol=1e-5)
    merge_to_folder(MergeConfig(model_name_or_path=str(stories), pooling=pooling, output_dir=str(tmp_path / "saved")))
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(saved.encode([text], prompt=prompt)[0], first, atol=1e-5)
