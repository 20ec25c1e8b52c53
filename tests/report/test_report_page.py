"""Reports as files, from the command line to the browser."""

import json
import re
import shutil
import subprocess

import pytest

from reading_pages import check_page
from run_folders import make_run, make_sentences_run, make_turn, make_words_run
from turncoder.cli import main
from turncoder.report.summary import leave_report, name_folders


def report(*folders, output):
    assert main(["report", *map(str, folders), "--output", str(output)]) == 0
    return output.read_text(encoding="utf8")


def make_all(folder):
    """One run of each kind."""
    pretrained = make_run(folder / "pretrained")
    record = json.loads((pretrained / "run.json").read_text())
    record |= {"stage": "pretrain", "anisotropy": [0.1, 0.4, 0.5], "memory": {"process": 2_500_000_000}}
    record |= {"parents": [{"name": "old/base"}], "command": ["/bin/turncoder", "pretrain", "a b.toml"], "cwd": "/home"}
    record["added"] = [{"command": ["/bin/turncoder", "pretrain", "c.toml"], "cwd": "/other"}]
    (pretrained / "run.json").write_text(json.dumps(record))
    with (pretrained / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 2.0}\n')
    (pretrained / "config.toml").write_text('config_name = "<llama>"\n')
    words = make_words_run(folder / "words", ("upos", "ner"), drawn=True)
    results = json.loads((words / "results.json").read_text())
    layers = {
        str(layer): {"mean": {"token_accuracy": 0.5 + layer / 10}, "std": {"token_accuracy": 0.01}} for layer in (0, 1)
    }
    results["tasks"]["upos"]["layers"] = layers
    (words / "results.json").write_text(json.dumps(results))
    return [make_turn(folder / "turned"), pretrained, words, make_sentences_run(folder / "scored")]


def test_a_page_holds_everything_and_asks_nothing_of_the_network(tmp_path, capsys):
    text = report(*make_all(tmp_path), output=tmp_path / "out" / "page.html")
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "page.html")
    assert len(text) < 500_000 and "http" not in text
    page = check_page(text)
    for told in ("From decoder to encoder", "Labels of words", "Sentences", "By layer", "Confusions", "Training"):
        assert ("h2", told) in [("h2", word) for word in page.words]
    for told in (
        "MRR@10",
        "2.50 GB",
        "old/base",
        "cd /home",
        "turncoder pretrain 'a b.toml'",
        "cd /other",
        '"<llama>"',
        "BM25",
    ):
        assert told in page.text, told
    labels = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("role") == "img"]
    assert any(label.startswith("upos: token acc. % by layer: words best 60.0 at layer 1") for label in labels)
    assert any(label.startswith("mean cosine by layer: pretrained 0.10 to 0.50") for label in labels)
    assert any(label.startswith("mean cosine by layer: causal 0.10 to 0.20; bidirectional") for label in labels)
    assert any("first sentences and the rests of their documents; 50 % of the variance" in label for label in labels)
    assert "training loss by step: pretrained from 3 at step 10 to 2 at step 20" in labels
    assert any(label.startswith("held-out loss by step: pretrained from 5 at step 0 to 2.5 at") for label in labels)
    assert any(label.startswith("MRR@10: BM25 (words) 0.3, causal") for label in labels)


def test_a_run_that_a_script_started_is_not_told_as_a_command_of_ours(tmp_path):
    run = make_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "command": ["my_train.py", "--fast"], "cwd": "/home"}))
    text = report(run, output=tmp_path / "a.md")
    assert "Started by a script: my\\_train.py --fast" in text and "turncoder --fast" not in text


def test_markdown_has_the_tables_of_the_page(tmp_path):
    folders = make_all(tmp_path)
    html, text = report(*folders, output=tmp_path / "a.html"), report(*folders, output=tmp_path / "a.md")
    page = check_page(html)
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    assert len(rows) == sum(tag == "tr" for tag, _ in page.tags)
    cells = sum(len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows)
    assert cells == sum(tag in ("td", "th") for tag, _ in page.tags)
    assert "<svg" not in text


def test_a_run_named_like_a_tag_is_a_name(tmp_path):
    folders = [
        make_turn(tmp_path / "<script>alert(1)<" / "script>"),
        make_words_run(tmp_path / '"onload="x', drawn=True),
    ]
    page = check_page(report(*folders, output=tmp_path / "a.html"))
    assert "script>" in page.text and '"onload="x' in page.text
    assert "another <b>sentence</b>" in page.text


def test_names_in_brackets_are_printed_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run[v2]")
    assert main(["report", "run[v2]"]) == 0
    assert "run[v2]" in capsys.readouterr().out
    assert main(["report", "run[v2]", "--output", "[new].md"]) == 0
    assert capsys.readouterr().out == "[new].md\n"


def test_runs_of_other_data_are_said_and_have_tables_of_their_own(tmp_path):
    folders = [make_turn(tmp_path / "a"), make_turn(tmp_path / "b", fingerprint="other")]
    text = report(*folders, output=tmp_path / "a.md")
    assert "not measured on the same data (a; b): the scores stand apart and are neither averaged nor ranked" in text
    assert text.count("| model | MRR@10 | STS |") == 2
    again = report(folders[0], make_turn(tmp_path / "c", seed=2), output=tmp_path / "b.md")
    assert "same data" not in again and "mean ± standard deviation over runs" in again
    assert (
        again.count("| model | MRR@10 | STS |") == 1 and "| + SimCSE minus causal | MRR@10 (mean of 2 seeds) |" in again
    )


def test_every_stage_on_tasks_has_a_picture_of_its_scores(tmp_path):
    """Of all of them, but for those of another size; and baselines stand in it."""
    glue = {"cola": {"matthews": 0.25}, "mrpc": {"accuracy": 0.75, "f1": 0.5}}
    language = {"lambada": {"perplexity": 20.0, "acc": 0.25}, "arc": {"acc": 0.5}, "wikitext": {"bits_per_byte": 0.9}}
    folders = []
    for stage, scores in (("glue", glue), ("language", language)):
        for name, more in (("a", 0.0), ("b", 0.0625)):
            folder = tmp_path / f"{stage}-{name}"
            folder.mkdir()
            tasks = {}
            for task, told in scores.items():
                mean = {metric: score + more for metric, score in told.items()}
                std = dict.fromkeys(told, 0.01)
                tasks[task] = {"metrics": list(told), "mean": mean, "std": std, "seeds": {"1": {}, "2": {}}}
                if stage == "language":
                    tasks[task] = {"metrics": mean, "stderr": std}
                tasks[task]["test_file"] = "test.csv"
            (folder / "results.json").write_text(json.dumps({"tasks": tasks, "train_mode": "probe"}))
            (folder / "run.json").write_text(json.dumps({"stage": stage, "status": "done", "config": {}}))
            folders.append(folder)
    folders += [make_sentences_run(tmp_path / name, better=better) for name, better in (("s", 0.0), ("t", 0.5))]
    page = check_page(report(*folders, output=tmp_path / "a.html"))
    labels = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("role") == "img"]
    assert labels[:4] == [
        "score (%) by task: glue-a 25 to 75, glue-b 31.2 to 81.2",
        "score by task: language-a 0.25 to 0.5, language-b 0.312 to 0.562",
        "perplexity by task: language-a 20 to 20, language-b 20.1 to 20.1",
        "bits_per_byte by task: language-a 0.9 to 0.9, language-b 0.963 to 0.963",
    ]
    told = {run: json.loads((tmp_path / run / "results.json").read_text())["tasks"].values() for run in "st"}
    low, high = ([pick(one["main_score"] for one in told[run]) for run in "st"] for pick in (min, max))
    runs = ", ".join(f"{run} {low[at]:.3g} to {high[at]:.3g}" for at, run in enumerate("st"))
    static = "s: static 0.31 to 0.31, t: static 0.315 to 0.315"
    assert labels[4] == f"score by task: {runs}, BM25 0.7 to 0.7, TF-IDF 0.71 to 0.71, {static}"
    for told in ("mrpc (accuracy)", "lambada", "find", "hollow: baselines", "bars: standard error"):
        assert told in page.text, told


def test_the_best_is_bold_where_items_and_seeds_tell_it_from_every_other(tmp_path):
    other = make_words_run(tmp_path / "other", sentences=100)
    runs = [make_words_run(tmp_path / name, error=error) for name, error in (("poor", 0.4), ("good", 0.05))]
    text = report(other, *runs, output=tmp_path / "a.md")
    assert "upos: other and poor, good were measured on different words" in text
    assert "| good minus poor | upos: token acc. % |" in text and "minus other" not in text
    bold = [line.split("|")[1].strip() for line in text.split("\n") if "| **" in line]
    assert bold == ["good"] and "The best value of a column is bold" in text
    same = [make_words_run(tmp_path / name, error=0.2) for name in ("one", "two")]
    assert "**" not in report(*same, output=tmp_path / "b.md")
    tasks = [make_sentences_run(tmp_path / f"scored-{better}", better=better, texts=200) for better in (0.0, 0.5)]
    text = report(*tasks, output=tmp_path / "c.md")
    rows = {line.split("|")[1].strip(): line for line in text.split("\n") if line.startswith("| ")}
    assert "**" not in rows["sts (cosine\\_spearman)"]  # BM25 is ahead, and has no items
    assert "| scored-0.5 minus scored-0.0 | sts: cosine\\_spearman |" in text


def test_a_run_that_is_not_done_and_one_of_nothing_are_marked(tmp_path):
    cut = make_run(tmp_path / "cut", results=False, status="interrupted")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "run.json").write_text(json.dumps({"stage": "words", "status": "running", "config": {}}))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.json").write_text(json.dumps({"config": {}}))
    page = check_page(report(cut, empty, bare, output=tmp_path / "a.html"))
    assert "cut is not done (interrupted): its scores are those of its last evaluation" in page.text
    assert "empty is not done (running)" in page.text and "No scores yet: empty (running)" in page.text
    assert "bare is not done (unknown)" in page.text and "+MNTP (interrupted)" in page.text


def test_the_same_folder_twice_is_shown_once_and_two_of_one_name_are_told_apart(tmp_path):
    one, other = make_run(tmp_path / "one" / "mntp"), make_run(tmp_path / "other" / "mntp", lora_r=16)
    text = report(one, other, one, output=tmp_path / "a.md")
    assert "A folder is named more than once; it is shown once." in text
    assert "2 runs: one/mntp, other/mntp" in text and "| lora\\_r | 8 | 16 |" in text
    assert name_folders([one, other, tmp_path]) == [
        "one/mntp",
        "other/mntp",
        tmp_path.parent.name + "/" + tmp_path.name,
    ]


def test_a_report_from_inside_a_run_does_not_take_it_for_the_owner_of_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(make_run(tmp_path / "run", model_name_or_path="org/model"))
    assert report(".", output=tmp_path / "a.md").startswith("<!-- turncoder report -->\n# Report: run\n")


def test_what_cannot_be_reported_or_written(tmp_path, capsys):
    run, mine = make_run(tmp_path / "run"), tmp_path / "notes.md"
    mine.write_text("# mine\n")
    broken = make_words_run(tmp_path / "broken", drawn=True)
    (broken / "confusion.csv").write_text("gold,NOUN\nNOUN,many\n")
    empty = make_words_run(tmp_path / "empty", drawn=True)
    (empty / "confusion.csv").write_text("")
    task = make_words_run(tmp_path / "task")
    (task / "results.json").write_text('{"tasks": {"upos": {"seeds": 3}}}')
    rung = make_turn(tmp_path / "rung")
    (rung / "results.json").write_text('{"rows": [3]}')
    for words, said in (
        ([task, "--output", "a.html"], "results.json is broken"),
        ([rung, "--output", "a.html"], "results.json is broken"),
        ([tmp_path / "gone", "--output", "a.html"], "is not a folder"),
        ([tmp_path, "--output", "a.html"], "has no run.json"),
        ([run, "--output", tmp_path / "a.pdf"], "give REPORT.html or REPORT.md"),
        ([run, "--output", mine], "is no report of turncoder; name another file"),
        ([run, "--output", tmp_path / "a.html", "--json"], "drop one"),
        ([run, "--output", mine / "a.html"], f"{mine} is a file; name a folder"),
        ([broken, "--output", tmp_path / "a.html"], "confusion.csv is broken"),
        ([empty, "--output", tmp_path / "a.html"], "confusion.csv is broken"),
        (["--output", tmp_path / "a.html"], "at least one RUN"),
    ):
        assert main(["report", *map(str, words)]) == 2
        assert said in capsys.readouterr().err
    assert mine.read_text() == "# mine\n" and not (tmp_path / "a.html").exists()
    before = report(run, output=tmp_path / "a.html")
    assert report(run, output=tmp_path / "a.html")[:300] == before[:300]  # a report is replaced


def test_many_runs_stay_below_two_megabytes(tmp_path):
    folders = [make_run(tmp_path / f"run-{number}", lora_r=number) for number in range(60)]
    rows = [json.dumps({"step": step, "loss": 5 / (1 + step), "tokens_per_second": 10.0}) for step in range(2000)]
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**record, "data": {"fingerprint": "same"}}))
        (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
        (folder / "config.toml").write_text("key = 1\n" * 80)
    text = report(*folders, output=tmp_path / "a.html")
    check_page(text)
    assert len(text.encode()) < 2_000_000
    assert "Drawn are 12 curves at most; left out: run-12" in text


def test_a_report_that_cannot_be_written_undoes_no_run(tmp_path, caplog):
    folder = make_run(tmp_path / "run")
    leave_report(folder)
    check_page((folder / "report.html").read_text())
    (folder / "report.html").write_text("somebody's own")
    leave_report(folder)
    assert "is not written" in caplog.text and (folder / "report.html").read_text() == "somebody's own"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme", "expected"), [(390, 0, "rgb(20, 24, 28)"), (1280, 1, "rgb(255, 255, 255)")]
)
def test_a_browser_shows_it_without_scrolling_sideways(tmp_path, width, scheme, expected):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on PATH")
    text = report(*make_all(tmp_path), output=tmp_path / "a.html")
    # a window of chromium is at least 500 wide: a frame is as wide as it is told
    measure = (
        "<script>const d = () => { const f = document.querySelector('iframe').contentDocument;"
        "const svgs = [...f.querySelectorAll('svg')].map(one => one.getBoundingClientRect());"
        "document.title = JSON.stringify([f.documentElement.scrollWidth, svgs.length,"
        "Math.min(...svgs.map(one => one.height)), getComputedStyle(f.body).backgroundColor]);"
        "document.body.textContent = document.title }</script>"
    )
    frame = f'<body><iframe srcdoc="{text.replace("&", "&amp;").replace(chr(34), "&quot;")}" '
    frame += f'style="width:{width}px;height:900px;border:0" onload="d()"></iframe>{measure}</body>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><html>{frame}</html>", encoding="utf8")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += [f"--blink-settings=preferredColorScheme={scheme}"]  # 0 is dark
    quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}"]
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--hide-scrollbars",
        *quiet,
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    said = subprocess.run([*command, f"file://{tmp_path}/frame.html"], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\[.*?\])</title>", said.stdout)
    assert found is not None, said.stderr[-2000:]
    across, pictures, height, ground = json.loads(found.group(1))
    assert across == width
    assert pictures >= 8 and height > 50
    assert ground == expected
