import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from run_folders import make_run, make_sentences_run, make_turn, make_words_run
from turncoder.cli import main
from turncoder.errors import UserError
from turncoder.evaluate.significance import bootstrap, bootstrap_items
from turncoder.evaluate.wordfiles import read_predictions
from turncoder.report.summary import read_run, read_runs, show


def shown(runs, width=200, **options):
    console = Console(width=width, record=True, file=io.StringIO())
    show(runs, console, **options)
    return console.export_text()


def test_the_rungs_of_a_run(tmp_path):
    run = read_run(make_run(tmp_path / "a"))
    assert [(row["model"], row["step"], row["loss"]) for row in run["rows"]] == [
        ("causal", 0, 6.0),
        ("bidirectional", 0, 5.0),
        ("+MNTP", 10, 2.0),
    ]
    assert (run["rows"][-1]["tokens"], run["rows"][-1]["seconds"]) == (12_345, 61.5)
    text = shown([run])
    assert all(part in text for part in ("causal", "+MNTP", "40.0 %", "70.0 %", "12,345", "61.5 s", "7.389"))


def test_a_run_that_is_not_done_shows_its_last_evaluation(tmp_path):
    run = read_run(make_run(tmp_path / "a", results=False, status="interrupted"))
    assert run["rows"][-1]["model"] == "+MNTP (interrupted)"
    assert run["rows"][-1]["perplexity"] == pytest.approx(12.18, abs=0.01)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert "no evaluation yet" in shown(read_runs([tmp_path / "a"]))


def test_a_causal_control_says_so(tmp_path):
    assert read_run(make_run(tmp_path / "a", bidirectional=False))["rows"][-1]["model"] == "+causal training"


def test_two_runs_show_how_their_configs_differ(tmp_path):
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", lora_r=16)])
    text = shown(runs)
    assert "lora_r: 8 -> 16" in text
    assert "output_dir" not in text
    assert "configs: the same" in shown([runs[0], runs[0]])
    assert json.loads(shown(runs, as_json=True))[1]["config"]["lora_r"] == 16


def test_a_last_line_cut_off_by_a_kill_is_dropped(tmp_path):
    folder = make_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "eval_lo')
    assert len(read_run(folder)["rows"]) == 3


def test_broken_or_missing_runs(tmp_path):
    folder = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="not a folder"):
        read_run(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no run\.json"):
        read_run(tmp_path)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "[]", *lines[1:]]))
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2"):
        read_run(folder)
    for text in ("{", "[]", "{}", '{"config": 3}'):
        (folder / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run\.json is broken"):
            read_run(folder)


def test_every_stage_shows_its_own_scores(tmp_path):
    contrast = make_run(tmp_path / "contrast", results=False)
    record = json.loads((contrast / "run.json").read_text())
    results = {"loss": 0.2, "alignment": 0.05, "uniformity": -2.5, "sts_spearman": 0.75}
    (contrast / "run.json").write_text(json.dumps({**record, "stage": "simcse", "results": results}))
    untrained = {"step": 0, "eval_loss": 1.0, "eval_alignment": 0.01, "eval_uniformity": -0.5, "eval_sts_spearman": 0.5}
    (contrast / "metrics.jsonl").write_text(json.dumps(untrained) + "\n")
    run = read_run(contrast)
    assert [row["model"] for row in run["rows"]] == ["untrained", "+SimCSE"]
    text = shown([run])
    assert all(part in text for part in ("align", "-2.500", "STS", "0.750", "0.500"))
    assert "top-1" not in text and "perplexity" not in text
    turned = make_run(tmp_path / "turned", results=False)
    rungs = [{"name": "causal", "mrr@10": 0.1, "sts": 0.4}, {"name": "+ SimCSE", "mrr@10": 0.3, "sts": 0.6}]
    (turned / "run.json").write_text(json.dumps({**record, "stage": "turn", "results": {"rows": rungs}}))
    (turned / "metrics.jsonl").unlink()
    assert [(row["model"], row["sts_spearman"]) for row in read_run(turned)["rows"]] == [
        ("causal", 0.4),
        ("+ SimCSE", 0.6),
    ]
    assert "MRR@10" in shown([read_run(turned)])


def test_a_run_on_words_has_a_row_for_each_task(tmp_path):
    folder = make_words_run(tmp_path / "a", ("upos", "ner"))
    run = read_run(folder)
    assert [(row["model"], row["seeds"], row["seconds"]) for row in run["rows"]] == [
        ("probe upos", 2, 12.0),
        ("probe ner", 2, None),
    ]
    results = json.loads((folder / "results.json").read_text())["tasks"]
    text = shown([run])
    for task, names in (("upos", ("token_accuracy", "macro_f1")), ("ner", ("token_accuracy", "macro_f1", "span_f1"))):
        for name in names:
            assert f"{100 * results[task]['mean'][name]:.2f} ±{100 * results[task]['std'][name]:.2f}" in text
    assert run["rows"][0]["span_f1"] is None
    one = read_run(make_words_run(tmp_path / "b", seeds=(42,)))
    assert "±" not in shown([one]) and "step" not in shown([one]) and "token acc. %" in shown([one])
    both = shown([run, read_run(make_run(tmp_path / "c"))])
    assert all(part in both for part in ("token acc. %", "top-1", "step", "seeds", "+MNTP", "probe ner"))


def test_two_runs_on_words_are_compared_by_a_paired_bootstrap(tmp_path):
    tasks = ("upos", "ner")
    runs = read_runs([make_words_run(tmp_path / name, tasks, error=error) for name, error in (("a", 0.4), ("b", 0.1))])
    text = shown(runs)
    for task, metric, said in (("upos", "token_accuracy", "token acc. %"), ("ner", "span_f1", "span F1 %")):
        files = [read_predictions(tmp_path / name / task / "predictions.tsv") for name in ("a", "b")]
        found = bootstrap(files[0][1], files[0][2], files[1][2], metric=metric)
        assert found["difference"] > 0.1
        assert f"{task}, {said}: +{100 * found['difference']:.2f} (95 %: +{100 * found['low']:.2f} to" in text
    assert text.count("p = 0.001") == 2 and text.count("paired bootstrap") == 1
    again = shown([runs[0], runs[0]])
    assert "upos, token acc. %: +0.00 (95 %: +0.00 to +0.00), p = 1.000" in again


def test_runs_on_words_that_cannot_be_compared(tmp_path):
    folders = [
        make_words_run(tmp_path / "a", ("upos",)),
        make_words_run(tmp_path / "b", ("upos",), sentences=100),
        make_words_run(tmp_path / "c", ("ner",)),
        make_words_run(tmp_path / "d", ("upos", "ner")),
        make_run(tmp_path / "e"),
    ]
    runs = read_runs(folders)
    assert "upos: not compared, the words or gold labels of the test files differ" in shown([runs[0], runs[1]])
    assert "paired" not in shown([runs[0], runs[2]]) + shown([runs[0], runs[4]])
    assert "upos, token acc. %:" in shown([runs[0], runs[3]])
    (tmp_path / "a" / "predictions.tsv").unlink()
    assert "paired" not in shown([runs[0], runs[3]])


def test_a_run_on_words_that_is_not_done_or_broken(tmp_path):
    folder = make_words_run(tmp_path / "a")
    for text in ("{", "[]", '{"tasks": {"upos": {}}}', '{"tasks": {"upos": 3}}'):
        (folder / "results.json").write_text(text)
        with pytest.raises(UserError, match=r"results\.json is broken"):
            read_run(folder)
    (folder / "results.json").unlink()
    assert "no evaluation yet (done)" in shown([read_run(folder)])


def test_a_narrow_console_shows_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("a-rather-long-name-of-a-run", "b", "c")
    runs = [read_run(make_words_run(Path(name), ("upos", "ner"))) for name in names[:2]]
    runs.append(read_run(make_run(Path("c"))))
    text = shown(runs, width=80)
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert [text.count(part) for part in ("time\n", "+MNTP", "±")] == [2, 1, 10]
    assert shown(runs, width=200).count("time\n") == 1


@pytest.mark.parametrize("stages", [["mntp"], ["simcse"], ["supervised"], ["turn"], ["mntp", "simcse", "supervised"]])
def test_names_and_numbers_are_whole_at_80_columns(tmp_path, monkeypatch, stages):
    monkeypatch.chdir(tmp_path)
    scores = {
        "mntp": {"loss": 12.345, "perplexity": 403.4, "accuracy": 0.123, "top5_accuracy": 0.345},
        "simcse": {"loss": 2.345, "alignment": 0.123, "uniformity": -2.345, "sts_spearman": 0.512},
        "supervised": {"loss": 2.345, "mrr@10": 0.1, "recall@1": 0.2, "triplet_accuracy": 0.6, "sts_spearman": 0.512},
        "turn": {"loss": 2.345, "accuracy": 0.123, "mrr@10": 0.1, "recall@1": 0.2, "triplets": 0.6, "sts": 0.512},
    }
    runs = []
    for stage in stages:
        folder = make_run(Path("runs", stage[:4]), results=False)
        record = json.loads((folder / "run.json").read_text())
        results = {"rows": [{"name": "causal", **scores[stage]}]} if stage == "turn" else scores[stage]
        later = {"stage": stage, "results": results, "tokens": 123_456_789, "wall_time_s": 12_345}
        (folder / "run.json").write_text(json.dumps({**record, **later}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 10_000, "loss": 1.0}) + "\n")
        runs.append(read_run(folder))
    lines = [[cell.strip() for cell in line.split("│")] for line in shown(runs, width=80).splitlines()]
    rows = {line[0]: set(line[1:]) for line in lines}
    for stage, run in zip(stages, runs, strict=True):
        found = rows[run["rows"][-1]["model"]]
        assert run["name"] in rows
        assert {f"{value:.3f}" for value in scores[stage].values() if value not in (403.4, 0.123, 0.345)} <= found
        assert stage != "mntp" or {"403.4", "12.3 %", "34.5 %"} <= found
        assert stage == "turn" or {"10,000", "123.5 M", "205.8 min"} <= found


def test_columns_that_have_no_room_get_a_table_of_their_own_and_names_are_whole(tmp_path):
    (tmp_path / "run").mkdir()
    names = ("pair_classification_paws", "mmlu_flan_n_shot_generative_professional_law", "cola")
    metrics = dict.fromkeys(("acc", "acc_norm", "perplexity", "exact_match", "bits_per_byte"), 0.125)
    tasks = {name: {"metrics": metrics, "stderr": dict.fromkeys(metrics, 0.25)} for name in names}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"stage": "language", "status": "done", "config": {}}))
    (tmp_path / "run" / "results.json").write_text(json.dumps({"tasks": tasks}))
    lines = shown([read_run(tmp_path / "run")], width=80).splitlines()
    assert all(len(line) <= 80 for line in lines) and not any("…" in line for line in lines)
    for name in names:
        assert sum(line.count("0.125 ±0.25") for line in lines if line.startswith(f"{name} ")) == len(metrics)
    scored = make_sentences_run(tmp_path / "scored", tasks=("sts",))
    results = json.loads((scored / "results.json").read_text())
    results["tasks"] = {"BulgarianStoreReviewSentimentClassfication": results["tasks"]["sts"]}
    (scored / "results.json").write_text(json.dumps(results))
    text = shown([read_run(scored)], width=80)
    assert "\nBulgarianStoreReviewSentimentClassfication " in text and "\n(cosine_spearman) " in text


def test_runs_of_other_data_are_said_below_the_table(tmp_path):
    sentences = [make_sentences_run(tmp_path / name, revision=name) for name in ("a", "b")]
    words = [make_words_run(tmp_path / f"words-{count}", sentences=count) for count in (100, 200)]
    turns = [make_turn(tmp_path / f"turn-{name}", fingerprint=name) for name in ("x", "y")]
    text = " ".join(shown(read_runs([*sentences, *words, *turns])).split())
    for told in ("sts: ", "find: ", "upos: ", "From decoder to encoder: not measured on the same data"):
        assert f"warning: {told}" in text
    assert text.count("neither averaged nor ranked together") == 4
    assert "warning" not in shown(read_runs([sentences[0], words[0], turns[0]]))


def test_scores_of_machamp_stand_in_the_same_table(tmp_path, capsys):
    run = make_words_run(tmp_path / "ours", ("upos", "ner"))
    for seed, accuracy in enumerate((0.9, 0.94)):
        folder = tmp_path / "logs" / "ewt" / f"2026.01.0{seed + 1}_00.00.00"
        folder.mkdir(parents=True)
        scores = {"best_dev_upos_accuracy": accuracy, "best_dev_ner_span_f1": 0.8, "time_total": "0:01:05"}
        (folder / "metrics.json").write_text(json.dumps(scores))
    logs = str(tmp_path / "logs" / "ewt")
    assert main(["report", str(run), "--machamp", logs]) == 0
    text = capsys.readouterr().out
    assert all(part in text for part in ("probe upos", "92.00 ±2.83", "80.00 ±0.00", "65.0 s"))
    assert "configs" not in text and "paired" not in text
    assert main(["report", "--machamp", logs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["stage"] == "machamp"
    assert main(["report"]) == 2
    assert main(["report", "--machamp", str(tmp_path)]) == 2
    assert "has no metrics.json" in capsys.readouterr().err


def test_scores_of_lm_eval_have_its_names_and_errors(tmp_path):
    (tmp_path / "run").mkdir()
    record = {"stage": "language", "status": "done", "config": {"limit": None}, "wall_time_s": 3.5}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    parts = {name: {"metrics": {"acc": acc}, "stderr": {"acc": 0.01}} for name, acc in (("one", 0.5), ("two", 0.25))}
    tasks = {
        "lambada_openai": {
            "metrics": {"perplexity": 170.23, "acc": 0.195},
            "stderr": {"perplexity": 7.5, "acc": 0.006},
        },
        "squad": {"metrics": {"f1": 66.0, "exact": 41.5}, "stderr": {"f1": None, "exact": None}},
        "apart": {"metrics": {}, "stderr": {}, "parts": parts},
        "together": {"metrics": {"acc": 0.4}, "stderr": {"acc": None}, "parts": parts},
    }
    (tmp_path / "run" / "results.json").write_text(json.dumps({"tasks": tasks}))
    run = read_run(tmp_path / "run")
    assert [row["model"] for row in run["rows"]] == ["lambada_openai", "squad", "one", "two", "together"]
    text = shown([run])
    assert all(part in text for part in ("170.2 ±7.5", "0.195 ±0.006", "66.000", "41.500", "0.400", "3.5 s"))
    (tmp_path / "run" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is broken"):
        read_run(tmp_path / "run")


def test_tasks_on_sentences_have_their_main_score_and_what_stands_beside_it(tmp_path):
    runs = read_runs([make_sentences_run(tmp_path / name, better=better) for name, better in (("a", 0.0), ("b", 0.5))])
    assert [row["model"] for row in runs[0]["rows"]] == ["sts (cosine_spearman)", "find (ndcg_at_10)"]
    text = shown(runs)
    assert all(part in text for part in ("score", "BM25", "TF-IDF", "static", "0.700", "0.310"))
    assert "warning" not in text
    assert "second minus first, paired bootstrap over items:" in text
    for task, told in (("sts", "cosine_spearman"), ("find", "ndcg_at_10")):
        items = [json.loads((tmp_path / name / "items" / f"{task}.json").read_text()) for name in ("a", "b")]
        parts = [one["parts"]["test/default"] for one in items]
        scores = [part["cosine" if "gold" in part else "score"] for part in parts]
        found = bootstrap_items(*scores, gold=parts[0].get("gold"))
        assert found["difference"] > 0 and f"{task}, {told}: {found['difference']:+.3f}" in text
    (tmp_path / "b" / "items" / "find.json").write_text(
        '{"metric": "ndcg_at_10", "parts": {"test/default": {"score": [0.5]}}}'
    )
    assert "find: not compared, the items differ" in shown(runs)
    (tmp_path / "b" / "items" / "find.json").write_text('{"parts": "all"}')
    with pytest.raises(UserError, match=r"find\.json is broken"):
        shown(runs)


def test_a_record_whose_parts_are_not_what_they_should_be(tmp_path):
    folder = make_run(tmp_path / "a")
    record = json.loads((folder / "run.json").read_text())
    for part in ({"parents": "mine"}, {"data": []}, {"wall_time_s": "long"}, {"results": 3}):
        (folder / "run.json").write_text(json.dumps({**record, **part}))
        with pytest.raises(UserError, match=r"run\.json is broken"):
            read_run(folder)
