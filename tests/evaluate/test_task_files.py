"""Files as tasks of lm-eval: what is read of them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from turncoder.errors import UserError
from turncoder.evaluate.taskfiles import open_task_file


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf8")
    return path


def test_each_kind_is_read(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("She gave it to Tom\n\n  Tom  \t laughed \n", encoding="utf8")
    words = open_task_file(f"last_word={texts}")
    assert words.rows == [{"context": "She gave it to", "word": " Tom"}, {"context": "  Tom", "word": " laughed"}]
    assert words.name == "last_word_texts"
    whole = open_task_file(f"perplexity={texts}")
    assert whole.rows == [{"text": "She gave it to Tom"}, {"text": "  Tom  \t laughed "}]
    assert whole.fingerprint != words.fingerprint
    one = {"question": "2 + 2 =", "choices": ["4", "5"]}
    asked = open_task_file(str(write(tmp_path / "q.jsonl", {**one, "answer": 0}, {**one, "answer": "5"})))
    assert asked.kind == "multiple_choice" and [row["answer"] for row in asked.rows] == [0, 1]
    good, bad = "They are.", "They is."
    pairs = open_task_file(str(write(tmp_path / "p.jsonl", {"good": good, "bad": bad})))
    blimp = open_task_file(str(write(tmp_path / "b.jsonl", {"sentence_good": good, "sentence_bad": bad, "UID": "x"})))
    assert pairs.kind == blimp.kind == "minimal_pairs" and pairs.rows == blimp.rows == [{"sentences": [good, bad]}]


@pytest.mark.parametrize(
    ("spec", "rows", "said"),
    [
        ("last_words={}", [{"text": "a b"}], r"'last_words' is no kind.*last_word, perplexity"),
        ("{}", [{"text": "a b"}], r"what is to be done.*last_word=.*perplexity="),
        ("last_word={}", [{"text": "alone"}], r"text 1.*one word"),
        ("perplexity={}", [{"text": " "}], "no row with something in it"),
        ("minimal_pairs={}", [{"good": "a"}], r"line 1.*no column 'bad'; there are good"),
        ("minimal_pairs={}", [{"text": "a"}], "no column 'good'"),
        ("minimal_pairs={}", [{"good": "a", "bad": "a"}], "the same sentence"),
        ("minimal_pairs={}", [{"good": "a", "bad": ""}], "bad = '' is no text"),
        ("multiple_choice={}", [{"question": "a", "choices": "b", "answer": 0}], "choices = 'b' must be a list"),
        ("multiple_choice={}", [{"question": "a", "choices": ["b"], "answer": 0}], "must be a list of two"),
        ("multiple_choice={}", [{"question": "a", "choices": ["b", None], "answer": 0}], "choices = None is no text"),
        ("multiple_choice={}", [{"question": "a", "choices": ["b", "c"], "answer": 2}], "answer = 2 must be .* 0 to 1"),
        ("multiple_choice={}", [{"question": "a", "choices": ["b", "c"], "answer": "d"}], "answer = 'd' must be"),
        ("multiple_choice={}", [{"question": "a", "choices": ["b", "c"], "answer": True}], "answer = True must be"),
        ("multiple_choice={}", [{"question": 3, "choices": ["b", "c"], "answer": 0}], "question = 3 is no text"),
    ],
)
def test_what_a_kind_cannot_use_is_refused(spec: str, rows: list[Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        open_task_file(spec.format(write(tmp_path / "file.jsonl", *rows)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        open_task_file(f"perplexity={tmp_path / 'none.txt'}")
    with pytest.raises(UserError, match=r"what is to be done"):
        (tmp_path / "a=b.txt").write_text("a b\n")
        open_task_file(str(tmp_path / "a=b.txt"))
