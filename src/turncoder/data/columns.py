"""Where anchor, positive and negatives stand in the records of a file."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from turncoder.errors import UserError

__all__ = ["Shape", "find_shape"]

ANCHORS = ("anchor", "query")
NEGATIVES = ("negative", "negatives")
REMEDY = "name those that count, in their order: --columns ANCHOR POSITIVE [NEGATIVE ...]"
FEWEST = 2

Record = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Shape:
    """Where the texts of a record are.

    Attributes
    ----------
    keys
        Columns of anchor, positive and negatives.
    fewest, most
        Negatives of a record, among those that have any.
    without
        Records that have none, where others have some.
    """

    keys: tuple[str, ...]
    fewest: int
    most: int
    without: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are kept."""
        return ("anchor", "positive", *(f"negative_{number + 1}" for number in range(self.fewest)))

    @property
    def remedy(self) -> str:
        """What keeps the rows without negatives."""
        return f"--columns {self.keys[0]} {self.keys[1]} takes all rows, without negatives"

    def take(self, record: dict[str, Any], place: str) -> list[str]:
        """Give anchor, positive and the first negatives of a record; what is missing is empty.

        Raises
        ------
        UserError
            A column that is not there, or a side that is no string.
        """
        if absent := [key for key in self.keys[:2] if key not in record]:
            raise UserError(f"{place}: no column {absent[0]!r}; it has {', '.join(record) or 'none'}")
        sides = [*(record[key] for key in self.keys[:2]), *_list_negatives(record, self.keys[2:])]
        texts = ["" if value is None else value for value in sides[: len(self.names)]]
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise UserError(f"{place}: {json.dumps(wrong[0], default=str)[:40]} is no text; a side is a string")
        return [*texts, *[""] * (len(self.names) - len(texts))]


def find_shape(where: str, records: Iterable[Record], columns: tuple[str, ...]) -> Shape:
    """Find out, in one pass, which columns count and how many negatives there are.

    Parameters
    ----------
    where
        The file, for messages.
    records
        Each with its place.
    columns
        Those of anchor, positive and negatives; empty: they are found by their names.

    Raises
    ------
    UserError
        No records, a column that none of them has, or one whose meaning is not known; more than half of them have no
        negative and others do.
    """
    places: dict[str, str] = {}
    counts: Counter[int] = Counter()
    for place, record in records:
        for name in record:
            places.setdefault(name, place)
        counts[len(_list_negatives(record, columns[2:] or filter(_is_negative, record)))] += 1
    if not places:
        raise UserError(f"{where}: no rows at all")
    if absent := [name for name in columns if name not in places]:
        raise UserError(f"columns: no column {absent[0]!r} in {where}; it has {', '.join(places)}")
    keys = columns or _name_columns(places)
    if len(keys) == FEWEST:
        return Shape(keys, 0, 0)
    shape = Shape(keys, min(set(counts) - {0}, default=0), max(counts), counts[0] if max(counts) else 0)
    if 2 * shape.without > counts.total():
        raise UserError(
            f"columns: {shape.without:,} of {counts.total():,} rows of {where} have no negative and would be left out; "
            f"{shape.remedy}"
        )
    return shape


def _is_negative(name: str) -> bool:
    return name.partition("_")[0] in NEGATIVES


def _list_negatives(record: dict[str, Any], keys: Iterable[str]) -> list[Any]:
    """List the negatives of a record, one or several a column, without the empty ones."""
    values: list[Any] = []
    for key in keys:
        value = record.get(key)
        values += value if isinstance(value, list) else [value]
    return [value for value in values if value is not None and not (isinstance(value, str) and not value.strip())]


def _name_columns(places: dict[str, str]) -> tuple[str, ...]:
    """Find anchor, positive and negatives by their names, given the first place of each; refuse any other."""
    names = list(places)
    first = places[names[0]]
    anchor = next((name for name in ANCHORS if name in names), None)
    negatives = [name for name in names if _is_negative(name)]
    if len(names) < FEWEST:
        raise UserError(f"{first}: one column, {names[0]!r}; a pair has an anchor and a positive (for texts: simcse)")
    if anchor is None or "positive" not in names:
        raise UserError(f"{first}: no {'anchor' if anchor is None else 'positive'} among {', '.join(names)}; {REMEDY}")
    if unknown := [name for name in names if name not in (anchor, "positive", *negatives)]:
        raise UserError(
            f"{places[unknown[0]]}: column {unknown[0]!r} is neither anchor, positive nor negative; {REMEDY}"
        )
    return (anchor, "positive", *negatives)
