"""Files as tasks of mteb: what of them mteb could not score."""

from pathlib import Path

import pytest

from turncoder.errors import UserError
from turncoder.evaluate.sentencefiles import open_sentence_file

make_task = pytest.importorskip("turncoder.evaluate.sentencetasks").make_task


def write(path: Path, **counts: int) -> str:
    rows = [f"{label} {row},{label}\n" for label, count in counts.items() for row in range(count)]
    path.write_text("text,label\n" + "".join(rows), encoding="utf8")
    return f"classification={path}"


def test_five_parts_need_two_labels_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    for seed in range(3):
        with pytest.raises(UserError, match=r"c\.csv': label 'b' has 1 row, .*add rows of it, or give TRAIN,TEST"):
            make_task(open_sentence_file(write(path, a=11, b=1)), seed)
        make_task(open_sentence_file(write(path, a=11, b=4)), seed)  # more than a part has
        make_task(open_sentence_file(write(path, a=6, b=5, c=1)), seed)
    write(tmp_path / "test.csv", a=2)
    make_task(open_sentence_file(f"{write(path, a=11, b=1)},{tmp_path / 'test.csv'}"), 0)
