"""Hard negatives: those of a brute-force search, never a positive of the anchor, in a file that training reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turncoder import encode_texts, load_encoder
from turncoder.cli import main
from turncoder.config.encoding import MineConfig
from turncoder.data.pairs import open_pairs
from turncoder.errors import UserError
from turncoder.mining import mine_file

QUERY, DOCUMENT = "Find it:\n", "Take this:\n"


@pytest.fixture(scope="module")
def pairs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 triplets; anchors that come twice with other positives, an anchor that is a positive, a row twice."""
    lines = (shared / "data" / "nli_triplets" / "dev-en.jsonl").read_text(encoding="utf8").splitlines()[:60]
    rows = [json.loads(line) for line in lines]
    rows += [{**rows[number], "positive": rows[number + 20]["positive"]} for number in range(10)]
    rows += [{**rows[30], "positive": rows[31]["query"]}, rows[2]]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def mine(pairs: Path, stories: Path, tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
    def run(**keys: Any) -> list[dict[str, str]]:
        out = tmp_path / "out.jsonl"
        given = {"pairs_file": str(pairs), "model_name_or_path": str(stories), "output_dir": str(out)}
        mine_file(MineConfig(**{**given, "overwrite": True, "device": "cpu", **keys}))
        return [json.loads(line) for line in out.read_text(encoding="utf8").splitlines()]

    return run


def search(pairs: Path, stories: Path, more: list[str], *, n: int, skip: int, margin: float, prompts: Any) -> list[Any]:
    """Look at every candidate of every anchor."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    texts = list(dict.fromkeys([row[side] for side in ("positive", "negative") for row in rows] + more))
    encoder = load_encoder(str(stories), device="cpu")
    candidates = encode_texts(encoder, texts, prompt=prompts[1], normalize=True)
    result = []
    for anchor, positive in dict.fromkeys((row["query"], row["positive"]) for row in rows):
        own = {row["positive"] for row in rows if row["query"] == anchor}
        scores = candidates @ encode_texts(encoder, [anchor], prompt=prompts[0], normalize=True)[0]
        furthest = min(scores[texts.index(one)] for one in own)
        near = [
            texts[number]
            for number in np.argsort(-scores)
            if texts[number] not in own | {anchor} and (margin < 0 or scores[number] <= furthest - margin)
        ][skip : skip + n]
        if len(near) == n:
            result.append((anchor, positive, *near))
    return result


@pytest.mark.parametrize(
    "keys",
    [
        {"num_negatives": 3},
        {"num_negatives": 1, "range_min": 2},
        {"num_negatives": 2, "absolute_margin": 0.1, "range_max": 500},
        {"num_negatives": 2, "query_prompt": QUERY, "document_prompt": DOCUMENT, "corpus_file": "corpus.txt"},
    ],
)
def test_negatives_are_those_of_a_search_through_all(
    keys: dict[str, Any], mine: Callable[..., Any], pairs: Path, stories: Path, stories_text: Path, tmp_path: Path
) -> None:
    more: list[str] = []
    if "corpus_file" in keys:
        more = [line for line in stories_text.read_text().splitlines() if line.strip()][:20]
        (tmp_path / "corpus.txt").write_text("\n".join(more))
        keys = {**keys, "corpus_file": str(tmp_path / "corpus.txt")}
    found = [tuple(row.values()) for row in mine(**keys)]
    expected = search(
        pairs, stories, more, n=keys["num_negatives"], skip=keys.get("range_min", 0),
        margin=keys.get("absolute_margin", -1), prompts=(keys.get("query_prompt"), keys.get("document_prompt")),
    )  # fmt: skip
    assert found == expected
    assert 10 < len(found) <= 71
    if "absolute_margin" in keys:
        assert len(found) < 71


def test_what_is_drawn_is_drawn_again(mine: Callable[..., Any]) -> None:
    keys = {"sampling_strategy": "random", "range_max": 30}
    first = mine(**keys)
    assert first == mine(**keys) != mine(**keys, seed=1)


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.parquet"])
def test_training_reads_it(
    name: str,
    pairs: Path,
    stories: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / name
    words = ["mine", str(pairs), "--model_name_or_path", str(stories), "--output", str(out)]
    with monkeypatch.context() as patch:
        patch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))
        assert main([*words, "--dry-run"]) == 0
    assert "candidates" in capsys.readouterr().out
    assert not any(tmp_path.rglob("*.arrow")) and not out.exists()
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # of proofs
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "70 of" not in said and "60 of 60 anchors got 3 negatives each" in said and "1 were repeated" in said
    [(rows, _)] = open_pairs(file=str(out))
    assert rows.data.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert len(rows) == 71
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_negatives": 500}, "num_negatives = 500"),
        ({"num_negatives": 0}, "num_negatives = 0 must be at least 1"),
        ({"relative_margin": 1.5}, "relative_margin = 1.5"),
        ({"absolute_margin": -0.1}, "absolute_margin = -0.1"),
        ({"absolute_margin": 1.9}, "no anchor of"),
        ({"min_score": 0.5, "max_score": 0.1}, "must be below max_score"),
        ({"range_max": 2}, "range_max = 2 must be at least 3"),
        ({"output_dir": "out.csv"}, "give OUT.jsonl or OUT.parquet"),
        ({"pairs_file": "./gone.jsonl"}, "gone.jsonl: no such file"),
        ({"pairs_file": "gone.csv"}, "gone.csv: no such file"),
        ({"pairs_file": "someone/pairs-v1.5"}, "PAIRS: 'someone/pairs-v1.5'"),
        ({"pairs_file": "."}, "is a folder"),
        ({"corpus_file": "./gone.txt"}, "gone.txt"),
        ({"pairs_file": None}, "mine needs PAIRS"),
        ({"columns": ("query",)}, "at least two"),
    ],
)
def test_what_is_wrong_is_said(
    keys: dict[str, Any], message: str, mine: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        mine(**keys)
    assert not list(tmp_path.iterdir())
