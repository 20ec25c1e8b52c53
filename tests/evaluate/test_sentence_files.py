"""Files as tasks for sentence vectors: what is read of them, and what is said of those that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from turncoder.errors import UserError
from turncoder.evaluate.sentencefiles import KINDS, open_sentence_file

PAIRS = "sentence1\tsentence2\tlabel\n"
CLASSES = "text,label\n"
TWICE = '{"_id": "1", "text": "which?"}\n' * 2


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")
    return path


def beir(folder: Path, **files: str) -> Path:
    parts = {
        "corpus.jsonl": "".join(json.dumps({"_id": one, "title": "T", "text": f"text {one}"}) + "\n" for one in "ab"),
        "queries.jsonl": '{"_id": "1", "text": "which?"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\ta\t1\n",
        **files,
    }
    for name, text in parts.items():
        write(folder / name, text)
    return folder


def test_the_shared_files_are_read(shared: Path) -> None:
    data = shared / "data"
    pair = f"{data}/ntrex/newstest2019.bul.txt,{data}/ntrex/newstest2019.eng.txt"
    found = {
        spec.partition("=")[0] + str(number): open_sentence_file(spec)
        for number, spec in enumerate(
            [
                f"sts={data}/stsb/stsb-dev.tsv",
                f"classification={data}/banking77",
                f"classification={data}/movie_reviews/movie_reviews.tsv",
                f"pair_classification={data}/qnli/dev.tsv",
                f"pair_classification={data}/pawsx/dev-en.tsv",
                f"triplets={data}/nli_triplets/dev-en.jsonl",
                f"bitext={pair}",
                f"retrieval={data}/scifact_beir",
            ]
        )
    }
    counts = {
        name: {split: len(next(iter(part.values()))) for split, part in file.splits.items()}
        for name, file in found.items()
    }
    assert counts == {
        "sts0": {"test": 1500},
        "classification1": {"train": 10003, "test": 3080},
        "classification2": {"train": 2000},
        "pair_classification3": {"test": 5463},
        "pair_classification4": {"test": 2000},
        "triplets5": {"test": 830},
        "bitext6": {"test": 1997},
        "retrieval7": {"corpus": 5183, "queries": 1109, "qrels": 339},
    }
    assert [file.name for file in found.values()] == [
        "sts_stsb-dev", "classification_banking77", "classification_movie_reviews", "pair_classification_dev",
        "pair_classification_dev-en", "triplets_dev-en", "bitext_newstest2019.bul-eng", "retrieval_scifact_beir",
    ]  # fmt: skip
    assert sum(found["pair_classification4"].splits["test"]["labels"]) == 863  # as its SOURCE counts
    assert sum(found["pair_classification3"].splits["test"]["labels"]) == 2702


def test_another_content_has_another_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "c.csv", CLASSES + "good,1\nbad,0\n" * 5)
    before = open_sentence_file(f"classification={path}").fingerprint
    assert open_sentence_file(f"clustering={path}").fingerprint != before
    write(path, CLASSES + "good,1\nworse,0\n" * 5)
    assert open_sentence_file(f"classification={path}").fingerprint != before


BROKEN: dict[str, tuple[Callable[[Path], str], str]] = {
    "no kind": (lambda p: str(write(p / "a.csv", CLASSES)), "what is to be done with it is not said; choose sts=FILE"),
    "another kind": (lambda p: "clusterings=a.csv", "'clusterings' is no kind of task"),
    "no file": (lambda p: f"sts={p}/none.tsv", "there is no file"),
    "no folder": (lambda p: f"retrieval={write(p / 'a.csv', CLASSES)}", "no folder with corpus.jsonl"),
    "one language": (lambda p: f"bitext={write(p / 'a.txt', 'x')}", "names 1 files; write bitext=FILE,FILE"),
    "label column": (lambda p: f"clustering={write(p / 'a.csv', 'text,topic' + chr(10) + 'x,y')}", "no column 'label'"),
    "no text": (lambda p: f"clustering={write(p / 'a.csv', CLASSES + ' ,1')}", "line 2: text = ' ' is no text"),
    "one label": (lambda p: f"clustering={write(p / 'a.csv', CLASSES + 'a,1')}", r"too few different labels \(1\)"),
    "few rows": (
        lambda p: f"classification={write(p / 'a.csv', CLASSES + 'a,1' + chr(10) + 'b,0')}",
        "2 rows are too few to be trained and scored on in turn",
    ),
    "unknown label": (
        lambda p: (
            f"classification={write(p / 'a.csv', CLASSES + 'a,1' + chr(10) + 'b,0')},"
            f"{write(p / 'b.csv', CLASSES + 'a,1' + chr(10) + 'b,2')}"
        ),
        "label '2' is not in",
    ),
    "no test": (lambda p: f"classification={write(p / 'x' / 'train.csv', CLASSES).parent}", "must hold one test.csv"),
    "truth": (
        lambda p: f"pair_classification={write(p / 'a.tsv', PAIRS + 'a' + chr(9) + 'b' + chr(9) + 'no')}",
        "must be 1",
    ),
    "one truth": (
        lambda p: f"pair_classification={write(p / 'a.tsv', PAIRS + 'a' + chr(9) + 'b' + chr(9) + '1')}",
        "all the same",
    ),
    "lines": (
        lambda p: f"bitext={write(p / 'a.txt', 'x' + chr(10) + 'y')},{write(p / 'b.txt', 'x')}",
        "2 lines and .* 1; line by line",
    ),
    "empty line": (
        lambda p: f"bitext={write(p / 'a.txt', 'x' + chr(10) + ' ')},{write(p / 'b.txt', 'x' + chr(10) + 'y')}",
        "a.txt, line 2: it is empty",
    ),
    "no negative": (
        lambda p: f"triplets={write(p / 'a.jsonl', json.dumps({'anchor': 'a', 'positive': 'b'}) * 1)}",
        "no negative",
    ),
    "no corpus": (lambda p: f"retrieval={write(p / 'x' / 'queries.jsonl', '{}').parent}", "there is no corpus.jsonl"),
    "no qrels": (
        lambda p: (beir(p / "x") / "qrels/test.tsv").unlink() or f"retrieval={p / 'x'}",
        "there is none of test.tsv",
    ),
    "unknown query": (
        lambda p: (
            f"retrieval={beir(p / 'x', **{'qrels/test.tsv': 'query-id	corpus-id	score' + chr(10) + '2	a	1'})}"
        ),
        "line 2: the query '2' is not in queries.jsonl",
    ),
    "relevance": (
        lambda p: (
            f"retrieval={beir(p / 'x', **{'qrels/test.tsv': 'query-id	corpus-id	score' + chr(10) + '1	a	x'})}"
        ),
        "score = 'x' must be a whole number",
    ),
    "no document": (
        lambda p: (
            f"retrieval={beir(p / 'x', **{'qrels/test.tsv': 'query-id	corpus-id	score' + chr(10) + '1	z	1'})}"
        ),
        "no row names a document",
    ),
    "twice": (
        lambda p: f"retrieval={beir(p / 'x', **{'queries.jsonl': TWICE})}",
        "is there 2 times; give each its own",
    ),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_what_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    make, said = BROKEN[case]
    with pytest.raises(UserError, match=said):
        open_sentence_file(make(tmp_path))
    assert set(KINDS) == {spec.partition("=")[0] for spec in KINDS.values()}
