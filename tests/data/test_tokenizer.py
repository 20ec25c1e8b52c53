"""The tokenizer is loaded, checked and never changed."""

import copy
import shutil

import pytest
from huggingface_hub import hf_hub_download
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from fakehub import Repository
from turncoder.data.tokenizer import (
    check_vocabulary,
    digest_tokenizer,
    end_documents,
    load_tokenizer,
    mask_token_id,
    pad_token_id,
    special_ids,
    tokenizer_files,
)
from turncoder.data.vocabulary import train_tokenizer
from turncoder.errors import UserError


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["tokenizers/gpt2", "tokenizers/mistral-7b-v1", "models/stories260k-hf"])
def test_nothing_that_we_do_changes_the_files(shared, tmp_path, name):
    folder = tmp_path / "tokenizer"
    shutil.copytree(shared / name, folder, copy_function=shutil.copyfile)
    before = read_all(folder)
    tokenizer = load_tokenizer(folder)
    words, specials, size = tokenizer("snake_case")["input_ids"], tokenizer.all_special_ids, len(tokenizer)
    special_ids(tokenizer, mask_token_id(tokenizer, "blank"))
    mask_token_id(tokenizer, "eos")
    pad_token_id(tokenizer)
    assert read_all(folder) == before
    assert (tokenizer("snake_case")["input_ids"], tokenizer.all_special_ids, len(tokenizer)) == (words, specials, size)
    copied = {path.name: path.read_bytes() for path in tokenizer_files(folder)}
    assert copied == {name: before[name] for name in ("tokenizer.json", "tokenizer_config.json")}


def test_mask_ids_are_those_of_llm2vec(shared):
    """What `tokenizer.mask_token = "_"` comes to, where LLM2Vec sets it."""
    for name, expected in (("tokenizers/gpt2", 62), ("tokenizers/mistral-7b-v1", 28730), ("models/stories260k-hf", 0)):
        tokenizer = load_tokenizer(shared / name)
        ours = mask_token_id(tokenizer, "blank")
        tokenizer.mask_token = "_"
        assert ours == tokenizer.mask_token_id == expected


def test_underscores_stay_maskable_even_in_a_tokenizer_that_llm2vec_saved(shared, tmp_path):
    tokenizer = load_tokenizer(shared / "tokenizers" / "mistral-7b-v1")
    tokenizer.mask_token = "_"
    tokenizer.save_pretrained(tmp_path)
    saved = load_tokenizer(tmp_path)
    mask = mask_token_id(saved, "blank")
    assert mask == 28730
    assert mask in saved.all_special_ids
    assert mask not in special_ids(saved, mask)
    assert mask in special_ids(saved, mask, as_llm2vec=True)
    assert {saved.bos_token_id, saved.eos_token_id, saved.unk_token_id} <= set(special_ids(saved, mask))


def test_end_of_text_stays_special_when_it_masks(shared):
    tokenizer = load_tokenizer(shared / "tokenizers" / "gpt2")
    assert special_ids(tokenizer, mask_token_id(tokenizer, "eos")) == (50256,)


def test_mask_types(tokenizer, shared):
    assert mask_token_id(tokenizer, "mask") == tokenizer.mask_token_id
    assert mask_token_id(tokenizer, "lamp"[:1]) == tokenizer.get_vocab()["l"], "a token by its text"
    with pytest.raises(UserError, match="'no such token' is no token of this vocabulary"):
        mask_token_id(tokenizer, "no such token")
    gpt2 = load_tokenizer(shared / "tokenizers" / "gpt2")
    with pytest.raises(UserError, match=r"none in reserve.*choose blank, eos, or a token"):
        mask_token_id(gpt2, "mask")


def test_reserved_tokens_mask(texts):
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.mask_token = None
    assert mask_token_id(tokenizer, "mask") == tokenizer.get_vocab()["<mask>"]


def test_blank_without_underscore_and_without_unknown_names_the_choices(texts):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(["only these words"], trainers.BpeTrainer(special_tokens=["</s>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(UserError, match=r"'blank': '_' is no token of this vocabulary; choose eos, or a token"):
        mask_token_id(tokenizer, "blank")


def test_pad_id_falls_back_without_touching_the_tokenizer(shared, tokenizer):
    assert pad_token_id(tokenizer) == tokenizer.pad_token_id
    gpt2 = load_tokenizer(shared / "tokenizers" / "gpt2")
    assert pad_token_id(gpt2) == 50256
    assert gpt2.pad_token_id is None
    assert pad_token_id(load_tokenizer(shared / "tokenizers" / "mistral-7b-v1")) == 0


def test_folder_without_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="has no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer("nobody/nothing-at-all")
    with pytest.raises(UserError, match="neither a folder nor in the hub's cache"):
        tokenizer_files("nobody/nothing-at-all")


@pytest.mark.parametrize("first", ["config.json", "tokenizer.json"])
def test_what_the_cache_has_of_a_tokenizer_is_not_taken_for_all_of_it(first, hub, shared, tmp_path):
    files = read_all(shared / "tokenizers" / "gpt2") | {"config.json": b'{"model_type": "gpt2"}'}
    hub.repositories["them/gpt2"] = Repository(branches={"main": files})
    hf_hub_download("them/gpt2", first, cache_dir=tmp_path)
    tokenizer = load_tokenizer("them/gpt2", cache_dir=str(tmp_path))
    known = load_tokenizer(shared / "tokenizers" / "gpt2")
    assert tokenizer("a lamp")["input_ids"] == known("a lamp")["input_ids"]
    assert (tokenizer.eos_token, tokenizer.model_max_length) == (known.eos_token, known.model_max_length)


def test_all_files_of_every_tokenizer_are_found(tmp_path):
    """Of each class that transformers has for a decoder or an encoder."""
    kinds = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES} & set(TOKENIZER_MAPPING_NAMES)
    kinds = {kind for kind in kinds if not getattr(CONFIG_MAPPING[kind], "is_encoder_decoder", False)}
    names = {TOKENIZER_MAPPING_NAMES[kind] for kind in kinds} | {"PhobertTokenizer", "BertweetTokenizer"}
    classes = [tokenizer_class_from_name(name) for name in sorted(filter(None, names))]
    classes = [one for one in classes if one and issubclass(one, PreTrainedTokenizerBase)]  # others lack a package here
    sets = {frozenset(one.vocab_files_names.values()) for one in classes if one.vocab_files_names}
    assert len(sets) > 10
    for number, files in enumerate(sets):
        for file in files:
            (tmp_path / str(number)).mkdir(exist_ok=True)
            (tmp_path / str(number) / file).touch()
        assert {path.name for path in tokenizer_files(tmp_path / str(number))} == files


def test_a_repository_without_tokenizer(hub, tmp_path):
    hub.repositories["them/bare"] = Repository(branches={"main": {"config.json": b'{"model_type": "qwen3"}'}})
    with pytest.raises(UserError, match="them/bare has no tokenizer"):
        load_tokenizer("them/bare", cache_dir=str(tmp_path))


def test_vocabulary_smaller_than_the_tokenizer(tokenizer):
    check_vocabulary(tokenizer, len(tokenizer))
    with pytest.raises(UserError, match=f"3 tokens beyond the model's {len(tokenizer) - 3} embeddings"):
        check_vocabulary(tokenizer, len(tokenizer) - 3)


def test_special_tokens_without_embedding_and_without_role_are_let_pass(tokenizer, caplog):
    size = len(tokenizer)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    check_vocabulary(tokenizer, size)
    assert f"the last is '<image>', id {size}" in caplog.text
    tokenizer.pad_token = "<image>"
    with pytest.raises(UserError, match="1 tokens beyond"):
        check_vocabulary(tokenizer, size)
    tokenizer.pad_token = "<pad>"
    tokenizer.add_tokens(["lamplight"])
    with pytest.raises(UserError, match=r"2 tokens beyond the model's .*the last is 'lamplight'"):
        check_vocabulary(tokenizer, size)


@pytest.mark.parametrize(
    "name", ["trained", *(f"tokenizers/{one}" for one in ("gpt2", "mistral-7b-v1")), "models/stories260k-hf"]
)
def test_the_end_of_text_stands_after_a_text_and_nowhere_else(name, shared, tokenizer):
    plain = tokenizer if name == "trained" else load_tokenizer(shared / name)
    ended = end_documents(plain)
    for text in ("a lamp", "", "Füße"):
        assert ended(text)["input_ids"] == [*plain(text)["input_ids"], plain.eos_token_id]
        assert set(ended(text).get("token_type_ids", [0])) == {0}
    assert end_documents(ended) is ended and end_documents(plain, always=False) is plain


def test_digest_does_not_depend_on_earlier_calls(tokenizer):
    before = digest_tokenizer(tokenizer)
    tokenizer(["a lamp", "a"], truncation=True, max_length=2, padding=True)
    assert digest_tokenizer(tokenizer) == before


def test_digest_does_not_depend_on_where_a_slow_tokenizer_lies(tmp_path):
    tokens, digests = ["<cls>", "<pad>", "<eos>", "<unk>", "L", "A", "<mask>"], []
    for name, vocabulary in (("one", tokens), ("two", tokens), ("other", [*tokens[:4], "A", "L", "<mask>"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "esm"}')
        (tmp_path / name / "vocab.txt").write_text("\n".join(vocabulary))
        tokenizer = load_tokenizer(tmp_path / name)
        assert not tokenizer.is_fast
        digests.append(digest_tokenizer(tokenizer))
    assert digests[0] == digests[1] != digests[2]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_trained_tokenizer_loses_nothing(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text


def test_trained_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again("snow_fall über")["input_ids"] == tokenizer("snow_fall über")["input_ids"]
    assert len(again) == 320
    with pytest.raises(UserError, match="vocab_size 100 is too small"):
        train_tokenizer(["a"], 100)
