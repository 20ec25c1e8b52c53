"""Heads that are trained together are those that a plain loop trains one at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_scheduler

from turncoder.config.words import PROBE_SCHEDULES
from turncoder.data.labels import IGNORED, UNSEEN
from turncoder.train.linear import Heads, Recipe, Words, apply_head, fit_heads

CPU = torch.device("cpu")
CLASSES = 5
RECIPE = Recipe(
    seeds=(3, 1, 2),
    learning_rates=(1e-3, 3e-2),
    steps=40,
    batch_words=64,
    dropout=0.0,
    weight_decay=0.01,
    schedule="linear",
    warmup=0.1,
    patience=None,
)


def make(words: int, layers: int = 1, width: int = 12, seed: int = 0) -> Words:
    """Words whose states have dimensions of any mean and deviation, one of them constant; a class is a direction."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(9).normal(size=(layers, CLASSES, width))
    labels = rng.integers(0, CLASSES, words)
    states = rng.normal(size=(layers, words, width)) + directions[:, labels]
    states = states * np.logspace(-1, 2, width) + np.linspace(-5, 5, width)
    states[:, :, 4] = 7.0
    return Words([torch.from_numpy(one).float() for one in states], torch.from_numpy(labels))


def accuracy(labels: torch.Tensor):
    return lambda guess_NM: (guess_NM == labels.numpy()).mean(axis=1)


def rising():
    """A judge for whom later is better, so that the last epoch is kept."""
    calls = []

    def judge(guess_NM):
        calls.append(guess_NM)
        return np.full(len(guess_NM), float(len(calls)))

    return judge, calls


def fit(train: Words, held_out: Words | None = None, *, judge=None, classes=CLASSES, **changes) -> Heads:
    recipe = dataclasses.replace(RECIPE, **changes)
    held_out = held_out or train
    return fit_heads(train, held_out, classes, recipe, device=CPU, judge=judge or accuracy(held_out.labels_M))


def train_plainly(words: Words, seed: int, rate: float, recipe: Recipe) -> np.ndarray:
    """One head by a loop of its own, in float64: the logits of all words."""
    rows = np.flatnonzero(words.labels_M.numpy() >= 0)
    states_KMD = np.stack([states.double().numpy() for states in words.states_KMD])
    deviation = states_KMD[:, rows].std(axis=1, keepdims=True)
    deviation[deviation < 1e-6] = 1
    states_KMD = torch.from_numpy((states_KMD - states_KMD[:, rows].mean(axis=1, keepdims=True)) / deviation)
    labels = words.labels_M[torch.from_numpy(rows)]
    draw = torch.Generator().manual_seed(seed)
    head = nn.Linear(states_KMD.shape[2], CLASSES).double()
    bound = states_KMD.shape[2] ** -0.5
    nn.init.zeros_(head.bias)
    head.weight.data = torch.empty(*head.weight.T.shape).uniform_(-bound, bound, generator=draw).T.double()
    mix = nn.Parameter(torch.zeros(len(states_KMD)).double())
    weights = [head.weight, head.bias, mix] if len(mix) > 1 else [head.weight, head.bias]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=recipe.weight_decay)
    warmup = round(recipe.warmup * recipe.steps)
    scheduler = get_scheduler(recipe.schedule, optimizer, warmup, recipe.steps)

    def read(places: torch.Tensor) -> torch.Tensor:
        return head((torch.softmax(mix, 0)[:, None, None] * states_KMD[:, places]).sum(0))

    step = 0
    while step < recipe.steps:
        order = torch.randperm(len(rows), generator=draw)
        for batch in order.split(recipe.batch_words)[: recipe.steps - step]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(read(torch.from_numpy(rows)[batch]), labels[batch]).backward()
            optimizer.step()
            scheduler.step()
            step += 1
    with torch.no_grad():
        return read(torch.arange(states_KMD.shape[1])).numpy()


def logits(heads: Heads, words: Words, seed: int, rate: int) -> np.ndarray:
    states_MKD = torch.stack([*words.states_KMD], dim=1).double()
    weight, bias = heads.weight_SRCE[seed, rate].double(), heads.bias_SRC[seed, rate].double()
    return (states_MKD.flatten(1) @ weight.T + bias).numpy()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("patience", [None, 1])
def test_heads_trained_together_are_those_trained_alone(layers, dropout, patience):
    train, held_out = make(300, layers), make(150, layers, seed=1)
    together = fit(train, held_out, dropout=dropout, patience=patience)
    assert len({float(score) for score in together.score_SR.flatten()}) > 1
    for place, seed in enumerate(RECIPE.seeds):
        for number, rate in enumerate(RECIPE.learning_rates):
            alone = fit(train, held_out, seeds=(seed,), learning_rates=(rate,), dropout=dropout, patience=patience)
            for name, value in vars(alone).items():
                found = getattr(together, name)[place, number]
                torch.testing.assert_close(found, value[0, 0], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "cosine"}, {"steps": 3}, {"batch_words": 1000}, {"warmup": 0.0, "weight_decay": 0.0}],
    ids=str,
)  # fmt: skip
def test_heads_are_those_of_a_plain_loop(layers, changes):
    train = make(310, layers)  # the last batch of an epoch is not full
    heads = fit(train, judge=rising()[0], **changes)
    recipe = dataclasses.replace(RECIPE, **changes)
    for place, seed in enumerate(recipe.seeds):
        for number, rate in enumerate(recipe.learning_rates):
            expected = train_plainly(train, seed, rate, recipe)
            np.testing.assert_allclose(logits(heads, train, place, number), expected, rtol=0, atol=1e-4)


def test_states_in_half_precision_are_learnt_from_in_float32():
    words = make(200)
    half = Words([states.bfloat16() for states in words.states_KMD], words.labels_M)
    heads = fit(half, judge=rising()[0], steps=10)
    exact = Words([states.float() for states in half.states_KMD], words.labels_M)
    assert torch.equal(heads.weight_SRCE, fit(exact, judge=rising()[0], steps=10).weight_SRCE)
    one = apply_head(torch.stack([*half.states_KMD], dim=1), heads.weight_SRCE[0, 0], heads.bias_SRC[0, 0])
    assert one.dtype == torch.float32
    np.testing.assert_allclose(one, logits(heads, exact, 0, 0), rtol=1e-4, atol=1e-2)


def test_guesses_are_those_of_the_heads_one_by_one():
    train, held_out = make(300, 2), make(5000, 2, seed=1)  # more than are read at a time
    heads = fit(train, held_out)
    guess_SRM = torch.cat(list(heads.guess(held_out, CPU)), dim=2)
    assert guess_SRM.shape == (3, 2, 5000)
    for place in range(3):
        for number in range(2):
            own = logits(heads, held_out, place, number)
            assert (guess_SRM[place, number].numpy() == own.argmax(1)).mean() > 0.999
            score = (guess_SRM[place, number] == held_out.labels_M).float().mean()
            assert float(heads.score_SR[place, number]) == pytest.approx(float(score), abs=1e-6)
    assert float(heads.score_SR.max()) > 0.8


def test_a_mix_is_an_average_and_leans_to_the_layer_that_tells():
    train = make(400, 3)
    noise = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))
    train = Words([noise, train.states_KMD[1], noise.flip(0)], train.labels_M)
    heads = fit(train, steps=150, judge=rising()[0])
    torch.testing.assert_close(heads.mix_SRK.sum(2), torch.ones(3, 2))
    assert bool((heads.mix_SRK[:, 1].argmax(1) == 1).all()) and float(heads.mix_SRK[:, 1, 1].min()) > 0.5
    assert bool((fit(make(100)).mix_SRK == 1).all())


def test_words_without_a_known_label_teach_nothing():
    train = make(300)
    states, labels = train.states_KMD[0].clone(), train.labels_M.clone()
    places = torch.arange(300) % 7
    states[places == 3] = 1e6
    labels[places == 3] = UNSEEN
    states[places == 5] = -1e6
    labels[places == 5] = IGNORED
    kept = labels >= 0
    judge = rising()[0]
    found = fit(Words([states], labels), train, judge=judge)
    expected = fit(Words([states[kept]], labels[kept]), train, judge=rising()[0])
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name


def test_each_head_is_kept_at_its_best_epoch():
    """Of two judges one is pleased most at epochs of its own for each head; the other always by the last."""
    train = make(256)  # 4 steps an epoch
    peaks = np.array([1, 5, 2, 3, 4, 2])  # of seed by rate
    common = {"schedule": "constant", "warmup": 0.0, "steps": 20}
    epochs = iter(range(1, 6))

    def judge(guess_NM):
        epoch = next(epochs)
        return 1 - np.abs(epoch - peaks) / 10

    heads = fit(train, judge=judge, **common)
    assert heads.epoch_SR.flatten().tolist() == peaks.tolist()
    assert bool((heads.score_SR == 1).all())
    for epoch in set(peaks):
        until = fit(train, judge=rising()[0], **{**common, "steps": int(4 * epoch)})
        for place in np.flatnonzero(peaks == epoch):
            assert torch.equal(heads.weight_SRCE.flatten(0, 1)[place], until.weight_SRCE.flatten(0, 1)[place])
            assert torch.equal(heads.bias_SRC.flatten(0, 1)[place], until.bias_SRC.flatten(0, 1)[place])


def test_of_equal_epochs_the_first_is_kept():
    heads = fit(make(256), judge=lambda guess_NM: np.full(len(guess_NM), 0.5))
    assert bool((heads.epoch_SR == 1).all())


@pytest.mark.parametrize(("patience", "calls"), [(1, 4), (2, 5), (None, 10)])
def test_it_stops_when_no_head_has_become_better_for_so_long(patience, calls):
    """One head is best at epoch 1, another at epoch 3."""
    seen = []

    def judge(guess_NM):
        seen.append(len(seen) + 1)
        return np.array([-abs(seen[-1] - 1) / 100, -abs(seen[-1] - 3) / 100])

    told = []
    recipe = dataclasses.replace(RECIPE, seeds=(1,), patience=patience)
    train = make(256)
    heads = fit_heads(
        train, train, CLASSES, recipe, device=CPU, judge=judge, report=lambda *row: told.append(row)
    )  # fmt: skip
    # With a patience of 1 the first head has done with at epoch 2, the other at epoch 4
    assert len(seen) == calls and heads.epoch_SR.tolist() == [[1, 3]]
    assert [row[0] for row in told] == seen and {row[1] for row in told} == {10}


def test_a_head_whose_patience_is_over_stays_as_it_is():
    seen = []

    def judge(guess_NM):
        seen.append(None)
        return np.array([[0.5, 0.4, 0.4, 0.9, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5]])[:, len(seen) - 1]

    train = make(256)
    heads = fit(train, judge=judge, seeds=(1,), patience=2, steps=20)
    assert heads.epoch_SR.tolist() == [[1, 5]] and heads.score_SR.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("schedule", PROBE_SCHEDULES)
def test_every_schedule_of_probes_is_one_of_transformers(schedule):
    train = make(100)
    heads = fit(train, schedule=schedule, steps=30)
    assert float(heads.score_SR.max()) > 0.8


def test_a_single_class():
    train = make(50)
    train = Words(train.states_KMD, torch.zeros_like(train.labels_M))
    heads = fit(train, classes=1)
    assert heads.weight_SRCE.shape == (3, 2, 1, 12) and bool((heads.score_SR == 1).all())
