import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from turncoder.model.attention import make_bidirectional
from turncoder.model.influence import backbone_of
from turncoder.model.isolation import can_isolate, isolation_mask
from turncoder.model.twin import build_twin, tiny_model

ISOLATING = (
    "llama mistral gemma2 gemma3_text gemma4_text gpt2 gpt_neo stablelm nemotron llama4_text mpt modernbert-decoder opt"
)
NOT = {
    "bloom": "four axes",
    "openai-gpt": "four axes",
    "roberta": "differently",
    "lfm2": "",
    "falcon_h1": "",
    "mamba": "",
}


def states(model, ids_BL, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids_BL, use_cache=False, **kwargs).last_hidden_state


def windowed(name, converted, implementation=None):
    """A backbone whose windows hold four tokens."""
    tiny = tiny_model(name, implementation)
    model = backbone_of(build_twin(tiny.config, type(tiny), width=32, window=4))
    if converted:
        make_bidirectional(model)
    return model


MODELS = {(name, converted): windowed(name, converted) for name in ("llama", "mistral", "gpt2") for converted in (0, 1)}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    name=st.sampled_from(sorted(MODELS)),
    seed=st.integers(0, 99),
)
def test_a_document_packed_is_a_document_alone(sizes, name, seed):
    model = MODELS[name]
    length = max(map(sum, sizes))
    documents_BL = torch.full((len(sizes), length), -1)
    for row, row_sizes in enumerate(sizes):
        numbers = [number for number, size in enumerate(row_sizes) for _ in range(size)]
        documents_BL[row, : len(numbers)] = torch.tensor(numbers)
    ids_BL = torch.randint(5, 120, documents_BL.shape, generator=torch.Generator().manual_seed(seed))
    packed_BLD = states(model, ids_BL, **isolation_mask(model, documents_BL, torch.float32))
    for row, row_sizes in enumerate(sizes):
        for number in range(len(row_sizes)):
            inside_L = documents_BL[row] == number
            alone_LD = states(model, ids_BL[row, inside_L][None])[0]
            torch.testing.assert_close(packed_BLD[row, inside_L], alone_LD, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("name", ISOLATING.split())
def test_documents_do_not_see_each_other(name, converted):
    model = windowed(name, converted)
    assert can_isolate(model) is True
    documents_BL = torch.tensor([[0] * 8 + [1] * 9 + [-1] * 2])
    ids_BL = torch.randint(5, 120, (1, 19), generator=torch.Generator().manual_seed(1))
    kwargs = isolation_mask(model, documents_BL, torch.float32)
    before_BLD = states(model, ids_BL, **kwargs)
    ids_BL[:, :8] = ids_BL[:, :8].flip(1)
    ids_BL[:, 17:] += 1
    after_BLD = states(model, ids_BL, **kwargs)
    torch.testing.assert_close(after_BLD[:, 8:17], before_BLD[:, 8:17], atol=1e-5, rtol=1e-4)
    assert (after_BLD[:, :8] - before_BLD[:, :8]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "llama4_text"])
def test_eager_masks(name):
    assert can_isolate(windowed(name, True, "eager")) is True


@pytest.mark.parametrize("name", NOT)
def test_where_it_cannot_be_proven_the_reason_is_given(name):
    model = tiny_model(name)
    reason = can_isolate(model)
    assert reason is not True
    assert NOT[name] in reason
    with pytest.raises(ValueError, match="cannot isolate"):
        isolation_mask(model, torch.zeros(1, 4, dtype=torch.long), torch.float32)


def test_without_isolation_documents_mix():
    model = MODELS["llama", 1]
    ids_BL = torch.randint(5, 120, (1, 12))
    positions_BL = torch.tensor([[*range(6), *range(6)]])
    before_BLD = states(model, ids_BL, position_ids=positions_BL)
    ids_BL[:, :6] = ids_BL[:, :6].flip(1)
    assert (states(model, ids_BL, position_ids=positions_BL)[:, 6:] - before_BLD[:, 6:]).abs().max() > 0.1


def test_a_mask_for_each_type_of_layer_has_its_window():
    model = windowed("gemma2", True)
    masks = isolation_mask(model, torch.zeros(1, 12, dtype=torch.long), torch.float32)["attention_mask"]
    seen_L = {kind: (mask_BHLL[0, 0, 6] == 0).sum().item() for kind, mask_BHLL in masks.items()}
    assert seen_L == {"sliding_attention": 9, "full_attention": 12}
