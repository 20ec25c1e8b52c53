"""A language model to pretrain: which way it looks, and whether every token of a text has an embedding that trains."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from turncoder.config.pretraining import PretrainConfig
from turncoder.errors import UserError
from turncoder.model.scratch import build_config, check_direction, choose_class, start_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
EITHER = ["bert", "roberta"]


def configure(**keys):
    if "config_name" in keys:
        keys = {"config_overrides": SIZES | keys.pop("config_overrides", {}), **keys}
    return PretrainConfig(train_file="unread.txt", **keys)


@pytest.fixture
def tokenizer(stories):
    return AutoTokenizer.from_pretrained(stories, pad_token="<unk>")


@pytest.fixture
def own_pad(shared):
    return AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt-neox-20b", pad_token="<|padding|>")


@pytest.fixture
def ends_as_pad(shared):
    """Pads with its end-of-text token, whose id is 0."""
    return AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt-neox-20b", pad_token="<|endoftext|>")


@torch.no_grad()
def find_moved(model, position):
    """Positions whose logits move when one token is another."""
    first_1L = torch.arange(20, 32)[None]
    second_1L = first_1L.clone()
    second_1L[0, position] = 50
    apart_L = (model(input_ids=first_1L).logits - model(input_ids=second_1L).logits).abs().amax(-1)[0]
    return (apart_L > 1e-6).nonzero().flatten().tolist()


@pytest.mark.parametrize("kind", ["clm", "mlm"])
@pytest.mark.parametrize("name", EITHER)
def test_what_can_be_both_is_what_the_kind_says(name, kind, tokenizer, tmp_path):
    """Built, and loaded from a model that was the other; opened by transformers alone it stays what it became."""
    wanted = [*range(6, 12)] if kind == "clm" else [*range(12)]
    torch.manual_seed(0)
    assert find_moved(start_model(configure(config_name=name, kind=kind), tokenizer), 6) == wanted
    before = start_model(configure(config_name=name, kind="mlm" if kind == "clm" else "clm"), tokenizer)
    before.save_pretrained(tmp_path / "before")
    config = configure(model_name_or_path=str(tmp_path / "before"), kind=kind)
    model = start_model(config, tokenizer)
    check_direction(config, model)
    assert find_moved(model, 6) == wanted
    assert all(torch.equal(weight, before.state_dict()[key]) for key, weight in model.state_dict().items())
    model.save_pretrained(tmp_path / "after")
    auto_class = AutoModelForCausalLM if kind == "clm" else AutoModelForMaskedLM
    assert find_moved(auto_class.from_pretrained(tmp_path / "after").eval(), 6) == wanted


@pytest.mark.parametrize(("kind", "said"), [("clm", "use kind = 'mlm'"), ("mlm", "use kind = 'clm'")])
@pytest.mark.parametrize("name", EITHER)
def test_what_looks_the_wrong_way_is_refused(name, kind, said, tokenizer):
    config = configure(config_name=name, kind=kind, config_overrides={"is_decoder": kind == "mlm"})
    with pytest.raises(UserError, match=f"the tokens? that it should predict: {said}"):
        check_direction(config, start_model(config, tokenizer))


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("llama", "mlm", "use kind = 'clm' and then turncoder turn"),
        ("distilbert", "clm", "use kind = 'mlm'"),
        ("t5", "mlm", "choose another architecture, such as .*"),
        ("t5", "clm", "choose another architecture, such as .*"),
    ],
)
def test_the_other_kind_is_advised_where_there_is_one(name, kind, said):
    config = PretrainConfig(train_file="unread.txt", config_name=name, kind=kind)
    with pytest.raises(UserError, match=f"; {said}$"):
        choose_class(config, build_config(config, None))


@pytest.mark.parametrize(("name", "kind"), [("llama", "clm"), ("bert", "mlm"), ("roberta", "mlm")])
def test_a_padding_token_that_ends_texts_too_has_an_embedding_that_trains(name, kind, ends_as_pad, tmp_path):
    config = configure(config_name=name, kind=kind, objective="cross_entropy")
    torch.manual_seed(0)
    model = start_model(config, ends_as_pad)
    rows_VD = model.get_input_embeddings().weight
    assert ends_as_pad.eos_token_id == 0
    start_D, others_VD = rows_VD[0].detach(), rows_VD[1:].detach()
    assert float(start_D.std()) == pytest.approx(float(others_VD.std()), rel=0.5)
    check_trains(model, 0)
    # The same of a checkpoint, whose config says so, with zeros and without
    for written in (start_D.clone(), torch.zeros(32)):
        with torch.no_grad():
            rows_VD[0] = written
        model.save_pretrained(tmp_path / "saved")
        config = configure(model_name_or_path=str(tmp_path / "saved"), kind=kind, objective="cross_entropy")
        loaded = start_model(config, ends_as_pad)
        row_D = loaded.get_input_embeddings().weight[0]
        assert torch.equal(row_D, written) if written.any() else row_D.std() > 0.005
        check_trains(loaded, 0)


def check_trains(model, row):
    """As an input, whatever the head does."""
    embeddings = model.get_input_embeddings()
    output = model.base_model(input_ids=torch.tensor([[20, row, 21]])).last_hidden_state
    (grad_VD,) = torch.autograd.grad(output.square().sum(), embeddings.weight)
    assert grad_VD[row].any()


def test_a_padding_token_that_masks_has_an_embedding_that_trains(own_pad):
    """GPT-NeoX keeps one token in reserve, which may do both; where it pads alone nothing moves it."""
    for kind, trains in (("mlm", True), ("clm", False)):
        config = configure(config_name="bert", kind=kind, mask_token_type="mask")
        embeddings = start_model(config, own_pad).get_input_embeddings()
        assert embeddings.padding_idx == (None if trains else own_pad.pad_token_id)
        assert bool(embeddings.weight[own_pad.pad_token_id].any()) == trains


@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_a_swap_hands_on_no_zeros_and_freezes_no_token(name, own_pad, ends_as_pad, shared, tmp_path):
    """The new tokenizer names no padding token: what fills its rows is a token that texts have."""
    kind = "mlm" if name == "roberta" else "clm"
    config = AutoConfig.for_model(name, vocab_size=50_304, pad_token_id=0, max_position_embeddings=64, **SIZES)
    auto_class = AutoModelForCausalLM if kind == "clm" else AutoModelForMaskedLM
    model = auto_class.from_config(config)
    assert not model.get_input_embeddings().weight[0].any()
    model.save_pretrained(tmp_path / "saved")
    ends_as_pad.save_pretrained(tmp_path / "saved")
    if name == "llama":
        new = AutoTokenizer.from_pretrained(shared / "tokenizers" / "mistral-7b-v1")
        read = [new.unk_token_id, new.eos_token_id]
    else:
        new, read = own_pad, [own_pad.eos_token_id]
    keys = {"mask_token_type": "eos"} if kind == "mlm" else {}
    config = configure(
        model_name_or_path=str(tmp_path / "saved"), kind=kind, swap_vocabulary=True, tokenizer_name="new",
        objective="cross_entropy", **keys,
    )  # fmt: skip
    swapped = start_model(config, new)
    for row in read:
        assert swapped.get_input_embeddings().weight[row].any(), row
        check_trains(swapped, row)
    if name == "roberta":  # its positions follow the padding token, which is another one now
        with torch.no_grad():
            model.set_input_embeddings(swapped.get_input_embeddings())
            states = [one.base_model.eval()(input_ids=torch.arange(5, 20)[None]) for one in (model, swapped)]
        torch.testing.assert_close(states[0].last_hidden_state, states[1].last_hidden_state)


def test_positions_that_hang_on_a_padding_token_far_off_or_missing_are_refused(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2", pad_token="<|endoftext|>")
    config = configure(config_name="roberta", kind="mlm", mask_token_type="eos")
    with pytest.raises(UserError, match=r"counts its positions from the id of the padding token.*50256"):
        start_model(config, tokenizer)
    bare = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    with pytest.raises(UserError, match="does not have; use one with a padding token"):
        start_model(config, bare)
