"""The model card: what it says is what the record and the model say, and nothing is made up."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from turncoder.artifact import save_encoder
from turncoder.data.tokenizer import load_tokenizer, tokenizer_files
from turncoder.model.attention import inspect_attention, make_bidirectional
from turncoder.model.backbone import load_language_model
from turncoder.model.heads import take_backbone
from turncoder.model.twin import tiny_model
from turncoder.model.views import AttentionReport
from turncoder.publish.card import write_card
from turncoder.publish.cardparts import count_held_out

GIVEN = {
    "name": "mine",
    "opens": "bidirectional",
    "dimensions": 64,
    "max_seq_length": 512,
    "pooling": "mean",
    "pad_token": "</s>",
    "prompts": {},
    "default_prompt_name": None,
    "record": {},
}


@pytest.fixture(scope="module")
def report() -> AttentionReport:
    backbone = take_backbone(tiny_model("llama"))
    return make_bidirectional(backbone)


def card(report: AttentionReport, **others: object) -> ModelCard:
    return ModelCard(write_card(report, **{**GIVEN, **others}))  # type: ignore[arg-type]


def test_the_header_names_what_is_known_and_no_licence(report: AttentionReport) -> None:
    record = {
        "stage": "simcse",
        "parents": [{"name": "runs/mine", "stage": "mntp", "started": "now"}, {"name": "princeton-nlp/Sheared-LLaMA"}],
    }
    written = card(report, record=record)
    assert written.data.library_name == "sentence-transformers"
    assert written.data.pipeline_tag == "sentence-similarity"
    assert written.data.base_model == "princeton-nlp/Sheared-LLaMA"
    assert {"turncoder", "sentence-transformers", "llama"} <= set(written.data.tags)
    assert written.data.license is None
    assert "`princeton-nlp/Sheared-LLaMA` \u2192 mntp \u2192 simcse" in written.text


def test_a_base_model_without_an_owner_is_one_unless_it_is_a_folder(
    report: AttentionReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_in_cache: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    record = {"stage": "mntp", "parents": [{"name": "gpt2"}]}
    assert "base_model" not in card(report, record=record).content  # a folder that is gone may have had this name
    keep_in_cache("models--gpt2")
    assert "\nbase_model: gpt2\n" in card(report, record=record).content
    (tmp_path / "gpt2").mkdir()
    assert "base_model" not in card(report, record=record).content
    assert "base_model" not in card(report, record={**record, "parents": [{"name": "/gone/gpt2"}]}).content


def test_a_folder_on_this_machine_is_no_base_model(report: AttentionReport, tmp_path: Path) -> None:
    record = {"stage": "merge", "parents": [{"name": str(tmp_path / "base")}, {"name": str(tmp_path / "adapter")}]}
    written = card(report, record=record)
    assert written.data.base_model is None and written.data.pipeline_tag == "feature-extraction"
    assert str(tmp_path) not in written.content and "`base` \u2192 `adapter` \u2192 merge" in written.text
    assert "not trained to compare texts" in written.text


def test_prompts_are_shown_as_the_model_reads_them(report: AttentionReport) -> None:
    prompts = {"query": "Find.\nQuery: ", "document": ""}
    text = card(report, prompts=prompts, default_prompt_name="query").text
    assert '`query` (the default): the model reads `"Find.\\nQuery: A decoder' in text


def test_training_and_results_are_tables(report: AttentionReport) -> None:
    record = {"training": {"text_tokens": 1234567}, "results": {"sts": {"spearman": 0.71234, "file": "a.tsv"}}}
    text = card(report, record=record).text
    assert "trained on" not in text
    assert (
        "512 tokens; trained on texts of 128 at most" in card(report, record={"training": {"max_seq_length": 128}}).text
    )
    assert "| text_tokens | 1,234,567 |" in text and "| sts spearman | 0.7123 |" in text and "a.tsv" not in text


def test_results_say_what_was_measured_and_on_how_much(report: AttentionReport) -> None:
    results = {"loss": 4.8, "predicted_tokens": 1234}
    text = card(report, record={"stage": "mntp", "results": results, "held_out": 80}).text
    assert "## Results\n\nMasked token prediction on held-out text: 1,234 tokens in 80 rows; loss in nats:\n\n|" in text
    assert "1,234 tokens; loss" in card(report, record={"stage": "mntp", "results": results}).text  # an older folder
    pairs = {"stage": "supervised", "results": {"loss": 1.0, "sts_spearman": 0.5}, "held_out": 7}
    assert "Contrastive loss on 7 held-out pairs" in (text := card(report, record=pairs).text)
    assert "pairs with people's scores" in text
    data = {"validation": {"one": {"rows": 3, "empty": 1}, "other": {"rows": 4}}}
    assert count_held_out({"data": data}) == 7 and count_held_out({"data": {"validation": {"blocks": 5}}}) == 5
    assert count_held_out({}) is None


def test_what_does_not_look_ahead_or_opens_otherwise_is_said(report: AttentionReport) -> None:
    layers = (dataclasses.replace(report.layers[0], looks_ahead=False), *report.layers[1:])
    partial = dataclasses.replace(report, verdict="partial", reason="layers.0: back only", layers=layers)
    text = card(partial, opens="disagrees", pooling="weightedmean").text
    assert f"{len(layers) - 1} of {len(layers)} layers look ahead" in text and "layers.0: back only" in text
    assert "from turncoder import load_encoder" in text and "causal in some batches" in text
    assert "do not know the pooling `weightedmean`" in text
    causal = inspect_attention(take_backbone(tiny_model("llama")))
    assert "attention is causal" in card(causal, opens="causal").text


def test_its_examples_run(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = take_backbone(load_language_model(str(stories)))
    make_bidirectional(backbone)
    save_encoder(
        backbone,
        tmp_path / "mine" / "model",
        tokenizer=load_tokenizer(stories),
        tokenizer_files=tokenizer_files(stories),
        max_seq_length=64,
        record={"matryoshka_dims": [64, 32]},
    )
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "mine/model/README.md").read_text()
    assert "# mine\n" in card
    blocks = card.split("```python\n")[1:]
    spaces: list[dict] = [{}, {}]
    for block, space in zip(blocks, spaces, strict=True):
        exec(block.split("```")[0], space)
    assert spaces[0]["short"].shape == (2, 32)
    torch.testing.assert_close(torch.from_numpy(spaces[0]["vectors"]), spaces[1]["vectors"], atol=1e-5, rtol=0)
    assert SentenceTransformer("mine/model").similarity_fn_name == "cosine"
