"""Batches for contrastive training: of one set each, no text twice, the same however the work is divided."""

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import assume, given
from hypothesis import strategies as st

from turncoder.data.batching import FEWEST, SetBatches
from turncoder.errors import UserError

sizes_of_sets = st.lists(st.integers(0, 60), min_size=1, max_size=4)


@st.composite
def samplers(draw: st.DrawFn, fewest_batches: int = 1) -> dict:
    """Options of a sampler that has at least one set to draw from; texts of 2 columns that occur more or less often."""
    sizes = draw(sizes_of_sets)
    batch_size, batches = draw(st.integers(2, 8)), draw(st.integers(fewest_batches, 4))
    assume(any(size >= FEWEST * batches for size in sizes))
    kinds = draw(st.sampled_from([None, 30, 200, 10**6]))
    random = np.random.default_rng(draw(st.integers(0, 9)))
    texts = None if kinds is None else [random.integers(0, kinds, (size, 2)).astype(np.uint64) for size in sizes]
    options = {"batch_size": batch_size, "batches": batches, "steps": 7, "seed": draw(st.integers(0, 2**40))}
    return {"sizes": sizes, "texts": texts, "in_turn": draw(st.booleans()), **options}


def draw_steps(options: dict) -> tuple[SetBatches, list[list[list[int]]]]:
    """Draw the batches of every step; whatever the texts, it ends, if in an error."""
    sampler = SetBatches(**options)
    try:
        batches = list(sampler)
    except UserError as error:
        assert "too few different texts" in str(error) and options["texts"] is not None
        assume(False)
    assert len(batches) == len(sampler) == options["steps"] * options["batches"]
    return sampler, [batches[at : at + options["batches"]] for at in range(0, len(batches), options["batches"])]


def whose(sampler: SetBatches, row: int) -> int:
    return int(np.searchsorted(np.cumsum(sampler.sizes), row, side="right"))


@given(samplers())
def test_steps_are_of_one_set_and_hold_no_text_twice(options: dict):
    sampler, steps = draw_steps(options)
    for step in steps:
        rows = [row for batch in step for row in batch]
        assert len({whose(sampler, row) for row in rows}) == 1
        assert len({len(batch) for batch in step}) == 1, "every device and every accumulated batch has as many rows"
        number = whose(sampler, rows[0])
        assert len(step[0]) == min(options["batch_size"], options["sizes"][number] // options["batches"]) >= FEWEST
        assert len(set(rows)) == len(rows)
        if options["texts"] is not None:
            own = [set(options["texts"][number][row - sampler.starts[number]].tolist()) for row in rows]
            assert sum(map(len, own)) == len(set.union(*own))


@given(samplers(), st.integers(0, 5))
def test_an_epoch_has_a_row_at_most_once_and_sets_their_shares(options: dict, epoch: int):
    sampler = SetBatches(**options)
    steps = list(sampler.draw(epoch))
    rows = np.concatenate(steps) if steps else np.empty(0)
    assert len(set(rows.tolist())) == len(rows)
    took = Counter(whose(sampler, step[0]) for step in steps)
    wanted = {n: size // sampler.step_rows[n] for n, size in enumerate(options["sizes"]) if sampler.count(n)}
    assert all(took[number] <= count for number, count in wanted.items()) and set(took) <= set(wanted)
    if options["texts"] is None and options["in_turn"]:
        assert took == dict.fromkeys(wanted, min(wanted.values()))
        assert [whose(sampler, step[0]) for step in steps] == [*wanted] * min(wanted.values())
    elif options["texts"] is None:
        assert took == wanted
    if options["texts"] is not None and not options["in_turn"]:
        for number in wanted:  # what is left over fills no step
            left = set(range(options["sizes"][number])) - {int(row - sampler.starts[number]) for row in rows}
            assert fill_greedily(options["texts"][number], sorted(left)) < sampler.step_rows[number]


def fill_greedily(text_NC: np.ndarray, rows: list[int]) -> int:
    """Count the rows of a step that surely can be filled: those without a text that another one has."""
    counts = Counter(text for row in rows for text in set(text_NC[row].tolist()))
    return sum(all(counts[text] == 1 for text in text_NC[row].tolist()) for row in rows)


@given(samplers())
def test_the_order_follows_from_seed_and_epoch_alone(options: dict):
    sampler, steps = draw_steps(options)
    assert list(sampler) == list(SetBatches(**options)) == [batch for step in steps for batch in step]
    longer = SetBatches(**{**options, "steps": 12})
    assert list(itertools.islice(longer, len(sampler))) == list(sampler), "more steps begin with the same"


@given(samplers(fewest_batches=4), st.sampled_from([1, 2, 4]))
def test_processes_share_a_step_out(options: dict, processes: int):
    sampler, steps = draw_steps(options)
    shards = [list(BatchSamplerShard(sampler, processes, process, even_batches=False)) for process in range(processes)]
    per_process = 4 // processes
    for number, step in enumerate(steps):
        mine = [shard[number * per_process : (number + 1) * per_process] for shard in shards]
        assert sorted(itertools.chain(*mine)) == sorted(step)


@given(sizes=sizes_of_sets, rows=st.sampled_from([(8, 1), (4, 2), (2, 4), (1, 8)]))
def test_a_step_holds_the_same_rows_however_it_is_divided(sizes: list[int], rows: tuple[int, int]):
    sizes = [size // 16 * 16 for size in sizes]  # as many as can be divided; see step_rows
    assume(any(sizes))
    steps = [
        [sorted(itertools.chain(*step)) for step in draw_steps(options)[1]]
        for size, batches in ((2 * rows[0], rows[1]), (16, 1))
        if (options := {"sizes": sizes, "batch_size": size, "batches": batches, "steps": 5, "seed": 3, "texts": None})
    ]
    assert steps[0] == steps[1]


def test_epochs_and_seeds_differ():
    options = {"batch_size": 10, "batches": 1, "steps": 20, "seed": 0}
    batches = list(SetBatches([100], **options))
    assert sorted(itertools.chain(*batches[:10])) == sorted(itertools.chain(*batches[10:])) == list(range(100))
    assert batches[:10] != batches[10:]
    assert batches != list(SetBatches([100], **{**options, "seed": 1}))
    two = SetBatches([40, 40], **options)
    turns = [whose(two, batch[0]) for batch in two]
    assert turns != [0, 1] * 10 and turns[:8] != turns[8:16], "whose turn it is, is drawn"


def test_sets_that_are_too_small_are_left_out_and_others_go_on():
    for in_turn in (False, True):
        sampler = SetBatches([1, 100, 0], batch_size=4, batches=1, steps=9, seed=0, in_turn=in_turn)
        assert {whose(sampler, row) for batch in sampler for row in batch} == {1}
    with pytest.raises(UserError, match="3 rows and a step takes 8: lower per_device_train_batch_size"):
        SetBatches([1, 2], batch_size=4, batches=2, steps=1, seed=0)


@pytest.mark.parametrize("in_turn", [False, True])
def test_too_few_different_texts_are_an_error(in_turn: bool):
    same = np.zeros((50, 2), dtype=np.uint64)
    other = np.arange(100, dtype=np.uint64).reshape(50, 2)
    options = {"batch_size": 4, "batches": 1, "steps": 9, "seed": 0, "in_turn": in_turn}
    with pytest.raises(UserError, match="too few different texts"):
        list(SetBatches([50], texts=[same], **options))
    if not in_turn:
        sampler = SetBatches([50, 50], texts=[same, other], **options)
        assert {whose(sampler, row) for batch in sampler for row in batch} == {1}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_time_is_in_proportion_to_the_rows_however_often_a_text_occurs(share: float):
    def measure(count: int) -> tuple[float, int]:
        random = np.random.default_rng(0)
        texts = random.integers(0, 2**63, (count, 3)).astype(np.uint64)
        texts[random.random(count) < share, 1] = 7
        sampler = SetBatches([count], batch_size=64, batches=1, steps=1, seed=0, texts=[texts])
        start = time.process_time()
        rows = sum(map(len, sampler.draw(0)))
        return time.process_time() - start, rows

    seconds, rows = measure(100_000)
    assert seconds < 2, "in proportion: 0.2 s; in the square: 8 s"
    assert rows > (1 - share) * 100_000 - 2 * 64
