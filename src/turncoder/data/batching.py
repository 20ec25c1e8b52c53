"""Which rows are seen together, and when: batches of so many tokens, and the order of an epoch.

The order is a pure function of (seed, epoch), computed where it is needed and never stored.

A permutation of a billion rows would be 8 GB. This one is a keyed Feistel network (Luby and Rackoff 1988; on a range
that is no power of two, a value that falls outside is sent through again: Black and Rogaway 2002), evaluated for a
window of positions at a time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from turncoder.errors import UserError

__all__ = ["EpochOrder", "SetBatches", "budget_batches", "permute"]

FEWEST = 2  # rows of a batch: fewer leave nothing to be told apart from
ROUNDS = 8
WINDOW = 4096  # positions that are computed together
GROUPS = 64  # batches in a window of rows that are sorted by length together


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64: Steele, Lea and Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Send positions through the permutation of [0, size) that (seed, epoch) names.

    Parameters
    ----------
    positions
        Integers in [0, size).
    size
        How many rows there are.
    seed, epoch
        The key.

    Returns
    -------
    numpy.ndarray
        int64, of the shape of ``positions``; over all positions each row comes exactly once.
    """
    half = np.uint64(max(2, (max(size - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    key = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) ^ np.uint64(epoch))
    keys = _mix(key + np.arange(ROUNDS, dtype=np.uint64))
    result = np.asarray(positions).astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        values = result[outside]
        left, right = values >> half, values & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        result[outside] = (left << half) | right
        outside = result >= np.uint64(size)
    return result.astype(np.int64)


class EpochOrder:
    """Which row stands at a position of an epoch.

    Without ``lengths``: a permutation. With them: the permuted rows are cut into windows of 64 batches, sorted by
    length inside each, cut into batches, and the batches of a window shuffled, so that a batch holds rows of like
    length and still every epoch is another one. Epochs follow each other without a break: where the rows of one do not
    fill its last batch, the next one begins with what fills it.

    Parameters
    ----------
    size
        Number of rows.
    seed
        The run's seed.
    lengths
        Tokens of each row [size], or None where all are equal.
    batch_size
        Rows that are seen together.
    """

    def __init__(self, size: int, seed: int, lengths: np.ndarray | None = None, batch_size: int = 8) -> None:
        self.size = size
        self.seed = seed
        self.lengths = lengths
        self.batch_size = batch_size
        self.window = WINDOW if lengths is None else batch_size * GROUPS
        self._rows = lru_cache(maxsize=2)(self._compute)

    def __call__(self, epoch: int, position: int) -> int:
        """Give the row at ``position`` of ``epoch``."""
        window, place = divmod(position + self._begun(epoch), self.window)
        return int(self._rows(epoch, window)[place if window else position])

    def rows(self, epoch: int) -> np.ndarray:
        """Give the whole order of an epoch [size], int64: for tests and small data."""
        windows = range(-(-(self.size + self._begun(epoch)) // self.window))
        return np.concatenate([self._compute(epoch, window) for window in windows])

    def _begun(self, epoch: int) -> int:
        """Count the rows of the epoch before that stand in the first batch of this one."""
        return 0 if self.lengths is None else epoch * self.size % self.batch_size

    def _compute(self, epoch: int, window: int) -> np.ndarray:
        begun = self._begun(epoch)
        positions = np.arange(max(0, window * self.window - begun), min(self.size, (window + 1) * self.window - begun))
        rows = permute(positions, self.size, self.seed, epoch)
        if self.lengths is None:
            return rows
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        # What fills up a batch that was begun stays first, and a batch that is not full last: the others stay whole
        first = 0 if window else min(len(rows), -begun % self.batch_size)
        whole = (len(rows) - first) // self.batch_size
        shuffled = permute(np.arange(whole), max(whole, 1), self.seed + 1 + window, epoch)
        batches = rows[first : first + whole * self.batch_size].reshape(whole, self.batch_size)[shuffled]
        return np.concatenate([rows[:first], batches.ravel(), rows[first + whole * self.batch_size :]])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = lru_cache(maxsize=2)(self._compute)


def budget_batches(length_N: np.ndarray, budget: int, *, alike: bool = False) -> list[np.ndarray]:
    """Cut rows into batches of at most ``budget`` tokens, padding included, the longest rows first.

    Parameters
    ----------
    length_N
        Tokens of each row [N]; rows without any are in no batch.
    budget
        Rows times the longest of them; a row that is longer goes alone.
    alike
        Rows of another length are in another batch.

    Returns
    -------
    list of numpy.ndarray
        Row numbers of each batch, longest first; rows of one length in their order.
    """
    order = np.argsort(-length_N, kind="stable")
    order = order[length_N[order] > 0]
    batches = []
    start = 0
    while start < len(order):
        longest = int(length_N[order[start]])
        rows = order[start : start + max(1, budget // longest)]
        batches.append(rows[length_N[rows] == longest] if alike else rows)
        start += len(batches[-1])
    return batches


class SetBatches(Sampler[list[int]]):
    """Batches for contrastive training, unrolled over epochs: a pure function of seed and sizes.

    The rows of an optimizer step are of one set, and no text occurs in them twice. What fills no step waits for another
    epoch, in another order. A set that is smaller than a step gives what it has, once an epoch.

    Parameters
    ----------
    sizes
        Rows of each set. Rows are numbered through all sets.
    batch_size
        Rows of a batch: what a device sees at once.
    batches
        Batches of an optimizer step: devices times accumulation.
    steps
        Optimizer steps that are drawn.
    seed
        Of the order.
    in_turn
        Sets take turns, and an epoch ends with the smallest; else each is gone through, in proportion to its size.
    texts
        A number for each text of each row, uint64 [N, C] per set; None where no text occurs twice.

    Raises
    ------
    UserError
        No step can be filled.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        batch_size: int,
        batches: int,
        steps: int,
        seed: int,
        in_turn: bool = False,
        texts: Sequence[np.ndarray | None] | None = None,
    ) -> None:
        self.sizes = list(sizes)
        self.starts = np.cumsum([0, *sizes[:-1]])
        self.batches = batches
        self.step_rows = [min(batch_size, size // batches) * batches for size in sizes]
        self.steps = steps
        self.seed = seed
        self.in_turn = in_turn
        self.texts = list(texts) if texts is not None else [None] * len(self.sizes)
        if not any(rows >= FEWEST * batches for rows in self.step_rows):
            raise UserError(
                f"the data has {sum(sizes)} rows and a step takes {batch_size * batches}: lower "
                "per_device_train_batch_size or gradient_accumulation_steps"
            )

    def __len__(self) -> int:
        """Count the batches."""
        return self.steps * self.batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the row numbers of each batch."""
        left, epoch = self.steps, 0
        while left:
            drawn = 0
            for rows in self.draw(epoch):
                if drawn == left:
                    break
                size = len(rows) // self.batches
                for batch in range(self.batches):
                    yield rows[batch * size : (batch + 1) * size].tolist()
                drawn += 1
            if not drawn:
                raise UserError("the data has too few different texts for a batch; lower per_device_train_batch_size")
            left, epoch = left - drawn, epoch + 1

    def draw(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the rows of each step of an epoch."""
        numbers = [number for number in range(len(self.sizes)) if self.count(number)]
        queues = [self.draw_set(number, epoch) for number in numbers]
        if len(queues) == 1:
            yield from queues[0]
        elif self.in_turn:
            for steps in zip(*queues, strict=False):
                yield from steps
        else:
            # Which set's turn it is, drawn without replacement; a set that runs out early is passed over
            turns = np.repeat(np.arange(len(queues)), [self.count(number) for number in numbers])
            for turn in permute(np.arange(len(turns)), max(len(turns), 1), self.seed + 1, epoch):
                rows = next(queues[turns[turn]], None)
                if rows is not None:
                    yield rows

    def count(self, number: int) -> int:
        """Count the steps that a set gives in an epoch, if no text occurs twice."""
        rows = self.step_rows[number]
        return self.sizes[number] // rows if rows >= FEWEST * self.batches else 0

    def draw_set(self, number: int, epoch: int) -> Iterator[np.ndarray]:
        """Yield the rows of each step that a set gives in an epoch."""
        size, rows, texts = self.sizes[number], self.step_rows[number], self.texts[number]
        order = permute(np.arange(size), size, self.seed + 2 + number, epoch)
        if texts is None:
            for start in range(0, size - rows + 1, rows):
                yield self.starts[number] + order[start : start + rows]
            return
        waiting: dict[int | None, deque[int]] = {
            None: deque(order.tolist())
        }  # for a text that another row has, or none
        while step := _fill_step(waiting, texts, rows):
            yield self.starts[number] + np.array(step)


def _fill_step(waiting: dict[int | None, deque[int]], texts: np.ndarray, count: int) -> list[int]:
    """Take ``count`` rows that share no text, those first that had to wait; none if there are not so many.

    A row that has to wait does so with those that wait for the same text: of these a step can hold one, so that the
    others are not looked at, and time stays in proportion to the rows however often a text occurs.
    """
    step: list[int] = []
    seen: set[int] = set()
    for text in sorted(waiting, key=lambda text: text is None):
        queue = waiting[text]
        while queue and text not in seen and len(step) < count:
            row = queue.popleft()
            own = texts[row].tolist()
            taken = next((one for one in own if one in seen), None)
            if taken is None:
                step.append(row)
                seen.update(own)
            else:
                waiting.setdefault(taken, deque()).append(row)
        if not queue and text is not None:
            del waiting[text]
        if len(step) == count:
            return step
    return []
