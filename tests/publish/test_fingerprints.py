"""Scores are told of the weights and the settings that are published, and of no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from run_folders import make_sentences_run, make_words_run
from turncoder.config.keys import OpenKeys
from turncoder.config.language import LanguageConfig
from turncoder.encode.encoder import load_encoder, open_encoder
from turncoder.encode.texts import BatchEncoder
from turncoder.encode.workers import digest_encoder
from turncoder.errors import UserError
from turncoder.publish.fingerprints import check_scores
from turncoder.train.stage import tell_parents


def score(folder: Path, model: Path, fingerprint: str = "", **config: Any) -> Path:
    """A folder as ``evaluate sentences`` leaves it, with the fingerprint of the model as the keys open it."""
    make_sentences_run(folder, model_name_or_path=str(model), **config)
    results = json.loads((folder / "results.json").read_text())
    opened = fingerprint or digest_encoder(BatchEncoder(load_encoder(str(model), **config), prompt=""))
    results["model"]["fingerprint"] = opened
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_the_same_model_passes_in_any_precision_and_by_any_of_its_names(runs: Path, tmp_path: Path) -> None:
    model = runs / "mntp"
    for number, config in enumerate(({}, {"dtype": "bfloat16"}, {"pooling": "mean", "bidirectional": True})):
        check_scores([(score(tmp_path / str(number), model, **config), model)])  # type: ignore[arg-type]
    check_scores([(tmp_path / "0", model / "model")])


def test_a_model_is_opened_once_for_all_that_scored_it_and_again_another_time(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = [(score(tmp_path / name, runs / "mntp"), runs / "mntp") for name in ("one", "two")]
    opened: list[OpenKeys] = []
    monkeypatch.setattr("turncoder.encode.encoder.open_encoder", lambda keys: opened.append(keys) or open_encoder(keys))
    check_scores(scored)
    assert len(opened) == 1
    check_scores(scored)  # by then it may have been trained anew
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling": "eos_token"}, "pooling = 'eos_token', and mntp is opened otherwise: score it without"),
        ({"max_seq_length": 16}, "max_seq_length = 16, and mntp"),
        ({"llm2vec": True}, "llm2vec = True, and mntp"),
        ({"pooling": "cls", "dtype": "bfloat16"}, "pooling = 'cls', and mntp"),
    ],
    ids=str,
)
def test_other_settings_are_refused(config: dict, said: str, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"results: .*run was scored with {said}"):
        check_scores([(score(tmp_path / "run", runs / "mntp", **config), runs / "mntp")])


def test_other_weights_are_refused(runs: Path, tmp_path: Path) -> None:
    model = tmp_path / "mntp"
    shutil.copytree(runs / "mntp", model)
    plain, pooled = score(tmp_path / "plain", model), score(tmp_path / "pooled", model, pooling="cls")
    path = model / "model/model.safetensors"
    weights = load_file(path)
    save_file({name: weight * 1.5 for name, weight in weights.items()}, path, {"format": "pt"})
    for run in (plain, pooled):
        with pytest.raises(UserError, match=rf"{run.name} scored other weights of mntp .*: score it again with"):
            check_scores([(run, model)])
    with pytest.raises(UserError, match=r"with adapters = x/y; merge those"):
        check_scores([(score(tmp_path / "adapted", model, "f", adapters=["x/y"]), model)])


def test_heads_on_a_model_that_was_trained_anew_or_further_are_refused(runs: Path, tmp_path: Path) -> None:
    model = runs / "mntp"
    (kept,) = tell_parents(str(model))[:1]
    started = kept["started"]
    run = make_words_run(tmp_path / "words", model_name_or_path=str(model))

    def check(before: str, tokens: int = kept["tokens"], **config: Any) -> None:
        record = json.loads((run / "run.json").read_text())
        record |= {"parents": [{**kept, "started": before, "tokens": tokens}]}
        (run / "run.json").write_text(json.dumps({**record, "config": {**record["config"], **config}}))
        check_scores([(run, model)])

    check(started, bidirectional=True)
    with pytest.raises(UserError, match=r"words scored mntp as it was trained at 2001-.*, and it was trained anew at"):
        check("2001-01-01T00:00:00+00:00")
    with pytest.raises(UserError, match=r"words scored mntp after 1,000 tokens, and it was trained to [\d,]+ since"):
        check(started, tokens=1000)
    with pytest.raises(UserError, match=r"words was scored with bidirectional = False, and mntp"):
        check(started, bidirectional=False)


def test_a_language_model_is_compared_as_evaluate_language_opens_it(runs: Path, tmp_path: Path) -> None:
    from turncoder.evaluate.harness import open_model
    from turncoder.evaluate.language import digest_language

    model = runs / "stories"
    config = LanguageConfig(model_name_or_path=str(model), tasks=("headless",), dtype="bfloat16")
    fingerprint = digest_language(open_model(config))
    for name, told in (("same", fingerprint), ("other", "f")):
        run = score(tmp_path / name, model, told, dtype="bfloat16")
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "stage": "language"}))
    check_scores([(tmp_path / "same", model)])
    with pytest.raises(UserError, match=r"other scored other weights of stories"):
        check_scores([(tmp_path / "other", model)])
