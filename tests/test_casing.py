"""Labels that raw text gives for free, and the files that quickstart makes of them."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turncoder.data.words import open_words
from turncoder.quickstart.casing import label_words, write_tagged
from turncoder.quickstart.prose import Prose


def test_case_and_marks_of_words() -> None:
    assert label_words('I said: "The NATO iPhone (v2) isn\'t Mac-like," ... really?') == [
        ("i", "Capitalised", "none"),
        ("said", "lower", ":"),
        ("the", "Capitalised", "none"),
        ("nato", "UPPER", "none"),
        ("iphone", "mixed", "none"),
        ("v2", "lower", "none"),
        ("isn't", "lower", "none"),
        ("mac-like", "Capitalised", ","),
        ("really", "lower", "?"),
    ]


@given(st.text(st.sampled_from("aBć.,?! -'ß7")))
def test_words_and_marks_are_those_of_the_text(text: str) -> None:
    rows = label_words(text)
    *parts, _ = re.split(r"(\w+(?:[-'.]\w+)*)([^\w]*)", text)[1:] or [""]
    words, gaps = parts[::3], parts[1::3]
    assert [word for word, _, _ in rows] == [word.lower() for word in words]
    for (_, case, mark), word, gap in zip(rows, words, gaps, strict=True):
        assert (case == "lower") != any(letter.isupper() for letter in word)
        assert mark == next((sign for sign in gap if sign in ".,?!"), "none")


def test_documents_are_in_one_file_and_their_last_word_in_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
    texts = [f"Text {'abcdefghij'[n % 10]}{n} has words, {'and more ' * n}then ends{n}." for n in range(40)]
    write_tagged(Prose(texts[:20], ["Alone.", *texts[20:]]), tmp_path / "words", 10)
    files = {name: open_words(file=str(tmp_path / "words" / f"{name}.conll")) for name in ("train", "dev", "test")}
    assert {name: len(words) for name, words in files.items()} == {"train": 10, "dev": 3, "test": 5}
    assert all(words.columns == ("case", "punct") for words in files.values())
    found = [{int(n) for n in re.findall(r"[a-j](\d+)", " ".join(words.data["text"]))} for words in files.values()]
    assert found[0] <= set(range(20)) and found[1] | found[2] <= set(range(20, 40)) and not found[1] & found[2]
    assert not any("ends" in text or len(text.split()) > 24 for words in files.values() for text in words.data["text"])
    written = (tmp_path / "words/test.conll").stat().st_mtime_ns
    write_tagged(Prose(texts[:20], texts[20:]), tmp_path / "words", 10)
    assert (tmp_path / "words/test.conll").stat().st_mtime_ns == written
