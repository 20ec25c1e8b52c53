import io
import json

import pytest
from rich.console import Console

from turncoder.errors import UserError
from turncoder.report import read_run, read_runs, show


def make_run(folder, *, lora_r=8, results=True, status="done", **config):
    folder.mkdir()
    record = {
        "stage": "mntp",
        "status": status,
        "config": {"lora_r": lora_r, "output_dir": str(folder), "bidirectional": True, **config},
        "tokens": 12_345,
        "wall_time_s": 61.5,
    }
    if results:
        record["results"] = {
            "loss": 2.0,
            "perplexity": 7.389,
            "accuracy": 0.4,
            "top5_accuracy": 0.7,
            "masked_tokens": 9,
        }
    (folder / "run.json").write_text(json.dumps(record))
    scores = {"eval_loss": 6.0, "eval_perplexity": 403.4, "eval_accuracy": 0.1, "eval_top5_accuracy": 0.2}
    rows = [
        {"step": 0, "model": "causal", **scores},
        {"step": 0, "model": "bidirectional", **scores, "eval_loss": 5.0},
        {"step": 10, "loss": 3.0, "learning_rate": 1e-5, "tokens_per_second": 100.0},
        {"step": 10, "eval_loss": 2.5, "eval_accuracy": 0.3},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(runs, **options):
    console = Console(width=200, record=True, file=io.StringIO())
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
    assert all(part in text for part in ("alignment", "-2.500", "STS", "0.750", "0.500"))
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
