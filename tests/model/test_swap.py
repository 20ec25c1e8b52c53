"""Another vocabulary: rows of shared tokens stay, others are means, and special tokens keep their roles."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from turncoder.cli import main
from turncoder.data.vocabulary import train_tokenizer
from turncoder.errors import UserError
from turncoder.model.swap import match_tokens, swap_vocabulary
from turncoder.model.twin import redraw_weights

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}


@pytest.fixture(scope="module")
def texts(stories_text: Path) -> list[str]:
    return stories_text.read_text(encoding="utf8")[:60_000].split("\n")


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, 420)


def build(kind: str, vocabulary: int, **changes):
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, max_position_embeddings=64, **SIZES, **changes)
    auto = AutoModelForMaskedLM if kind in ("bert", "roberta", "modernbert") else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    redraw_weights(model)
    model.tie_weights()
    return model


def permute(tokenizer, order):
    """The same tokenizer with other ids: that of the token with id k is order[k]."""
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    table["model"]["vocab"] = {token: order[place] for token, place in table["model"]["vocab"].items()}
    for one in table["added_tokens"]:
        one["id"] = order[one["id"]]
    for one in table["post_processor"]["special_tokens"].values():
        one["ids"] = [order[place] for place in one["ids"]]
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(table)), **NAMES)


KINDS = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False}),
    ("phi", {}),
    ("bert", {"pad_token_id": 2}),
    ("bert", {"pad_token_id": 2, "tie_word_embeddings": False}),
    ("roberta", {"pad_token_id": 2}),
    ("modernbert", {"pad_token_id": 2}),
]


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_the_same_tokenizer_changes_nothing(kind, changes, tokenizer):
    model = build(kind, len(tokenizer), **changes)
    token_ids_BL = torch.arange(5, 45).reshape(2, 20)
    before_BLV = model(input_ids=token_ids_BL).logits
    swapped = swap_vocabulary(model, tokenizer, copy.deepcopy(tokenizer))
    assert torch.equal(swapped(input_ids=token_ids_BL).logits, before_BLV)


@pytest.mark.parametrize(("kind", "changes"), KINDS)
def test_permuted_ids_permute_the_logits_and_the_folder_opens(kind, changes, tokenizer, tmp_path):
    model = build(kind, len(tokenizer), **changes)
    generator = torch.Generator().manual_seed(3)
    # Ids of padding near the first: RoBERTa counts positions from there
    order = [4, 0, 3, 1, *(4 + torch.randperm(len(tokenizer) - 4, generator=generator)).tolist()]
    order[order.index(4, 1)], order[0] = 2, 4
    new = permute(tokenizer, order)
    order_V = torch.tensor(order)
    text = "Once upon a time, there was a little girl."
    ids, new_ids = (torch.tensor([one(text)["input_ids"]]) for one in (tokenizer, new))
    assert torch.equal(order_V[ids], new_ids)
    with torch.no_grad():
        before_BLV = model(input_ids=ids).logits
        swap_vocabulary(model, tokenizer, new)
        model.save_pretrained(tmp_path)
        auto = AutoModelForMaskedLM if "Masked" in type(model).__name__ else AutoModelForCausalLM
        opened, told = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not told["missing_keys"]
        found_BLV = opened.eval()(input_ids=new_ids).logits
    torch.testing.assert_close(found_BLV[..., order_V], before_BLV, rtol=1e-5, atol=1e-5)
    assert opened.config.pad_token_id == new.pad_token_id == 3
    assert opened.config.bos_token_id in (None, new.bos_token_id)
    tied = opened.get_output_embeddings().weight is opened.get_input_embeddings().weight
    assert tied == changes.get("tie_word_embeddings", kind != "phi")


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(300, 700), algorithm=st.sampled_from(["bpe", "unigram"]))
def test_rows_are_kept_or_means_of_parts(size, algorithm, texts, tokenizer):
    """By the raw bytes of tokens: both tokenizers write them with the same alphabet."""
    new = train_tokenizer(texts, size, algorithm=algorithm)
    parts = match_tokens(tokenizer, new, len(tokenizer))
    names = {place: token for token, place in tokenizer.get_vocab().items()}
    assert len(parts) == len(new)
    for token, place in new.get_vocab().items():
        if token in tokenizer.get_vocab():
            assert parts[place] == [tokenizer.get_vocab()[token]]
        elif "\ufffd" in new.decode([place]):  # bytes that are no text by themselves
            assert parts[place] == []
        else:
            assert len(parts[place]) > 1
            assert "".join(names[one] for one in parts[place]) == token
    model = build("llama", len(tokenizer), tie_word_embeddings=True)
    rows_VD = model.get_input_embeddings().weight.detach().clone()
    swap_vocabulary(model, tokenizer, new)
    for found_D, ids in zip(model.get_input_embeddings().weight, parts, strict=True):
        torch.testing.assert_close(found_D, (rows_VD[ids] if ids else rows_VD).mean(0))


def test_other_families_meet_in_the_text_of_tokens(stories, tokenizer):
    """A sentencepiece vocabulary marks spaces and spells bytes in its own way."""
    old = AutoTokenizer.from_pretrained(stories)
    parts = match_tokens(old, tokenizer, len(old))
    there, here = old.get_vocab(), tokenizer.get_vocab()
    for ours, theirs in (("Ġthe", "▁the"), ("a", "a"), ("Ġwas", "▁was"), ("<s>", "<s>"), ("</s>", "</s>")):
        assert parts[here[ours]] == [there[theirs]], ours
    assert parts[here["<mask>"]] == []
    texts = {token: "".join(old.convert_ids_to_tokens(parts[place])) for token, place in here.items()}
    assert texts["Ġlittle"] in ("▁little", "▁l" + "ittle")


def test_positions_that_hang_on_a_far_padding_token_are_refused(tokenizer):
    model = build("roberta", len(tokenizer), pad_token_id=2)
    order = [0, 1, len(tokenizer) - 1, *range(2, len(tokenizer) - 1)]
    with pytest.raises(UserError, match="counts its 64 positions"):
        swap_vocabulary(model, tokenizer, permute(tokenizer, order))


def test_a_swap_from_the_command_line_trains_the_embeddings_alone(stories, texts, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n".join(texts), encoding="utf8")
    flags = {
        "model_name_or_path": stories, "train_tokenizer": "bpe", "vocab_size": 400, "trains": "embeddings",
        "train_file": tmp_path / "text.txt", "max_seq_length": 32, "max_steps": 20, "max_eval_samples": 20,
        "learning_rate": 1e-2, "logging_steps": 10, "save_strategy": "no", "output": tmp_path / "run",
    }  # fmt: skip
    assert main(["pretrain", "--swap_vocabulary", *(f"--{key}={value}" for key, value in flags.items())]) == 0
    assert "of 400 new tokens" in capsys.readouterr().err
    before = AutoModelForCausalLM.from_pretrained(stories).state_dict()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.config.vocab_size == 400
    moved = {name for name, weight in model.state_dict().items() if not weight.equal(before[name].to(weight))}
    assert moved <= {"model.embed_tokens.weight", "lm_head.weight"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert losses[-1] < losses[0]
