"""From decoder to encoder in one command: every rung, taken up where it stopped, and a folder that opens anywhere."""

import contextlib
import errno
import io
import json
import logging
import math
import shutil
import signal
import subprocess
import sys
import time
import zlib
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from reading_pages import check_page
from turncoder import encode_texts, load_encoder
from turncoder.cli import main
from turncoder.config.stages import TurnConfig
from turncoder.data.corpus import Corpus, is_held_out
from turncoder.data.files import names_file
from turncoder.data.tokenizer import load_tokenizer
from turncoder.evaluate.sentences import read_sts
from turncoder.evaluate.wordfiles import read_predictions
from turncoder.report.summary import write_report
from turncoder.train.course import count_steps
from turncoder.turn import ladder, opening
from turncoder.turn.ladder import tell_opening
from turncoder.turn.sizes import Sizes, configure_stages, derive_sizes

STEPS = ["--steps_mntp", "3", "--steps_simcse", "2", "--steps_supervised", "2", "--eval_documents", "60"]
FEW = ["--simcse.max_eval_samples", "32"]
STEPS += FEW


@pytest.fixture(scope="module")
def material(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few hundred paragraphs, sixty scored pairs, a hundred triplets, two hundred tagged sentences."""
    folder = tmp_path_factory.mktemp("material")
    lines = (shared / "data/wiki_paragraphs_en/wiki_en.txt").read_text(encoding="utf8").splitlines()
    (folder / "text.txt").write_text("\n".join(lines[:900]) + "\n", encoding="utf8")
    sts = (shared / "data/stsb/stsb-dev.tsv").read_text(encoding="utf8").splitlines()
    (folder / "sts.tsv").write_text("\n".join(sts[:61]) + "\n", encoding="utf8")
    pairs = (shared / "data/nli_triplets/train-en.jsonl").read_text(encoding="utf8").splitlines()
    (folder / "pairs.jsonl").write_text("\n".join(pairs[:200]) + "\n", encoding="utf8")
    tagged = (shared / "data/ud_english_ewt/en_ewt-ud-dev.conllu").read_text(encoding="utf8").split("\n\n")
    (folder / "words.conllu").write_text("\n\n".join(tagged[:200]) + "\n\n", encoding="utf8")
    names = ("text.txt", "sts.tsv", "pairs.jsonl", "words.conllu")
    return {name.partition(".")[0]: folder / name for name in names}


def words(stories: Path, material: dict[str, Path], output: Path, *more: str) -> list[str]:
    given = [word for name, path in material.items() for word in (f"--{name}", str(path))]
    return ["turn", str(stories), *given, "--output", str(output), *STEPS, "--max_seq_length", "64", *more]


def launch(command: list[str], code: int = 0) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = main(command)
    assert found == code, said.getvalue()[-3000:]
    return said.getvalue()


@pytest.fixture(scope="module")
def turned(stories: Path, material: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turn") / "out"
    said = launch(words(stories, material, folder, "--mntp.mlm_probability", "0.3"))
    assert "5 of 5 layers look both ways" in said and "learning rate" in said
    assert "xpos is measured, of upos, xpos" in said and "3 seeds x 4 learning rates on each rung" in said
    return folder


def rows_of(folder: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}


def test_every_rung_is_a_run_and_is_measured(turned: Path) -> None:
    for stage, name in {"control": "mntp", "mntp": "mntp", "simcse": "simcse", "supervised": "supervised"}.items():
        record = json.loads((turned / stage / "run.json").read_text())
        assert (record["status"], record["stage"]) == ("done", name)
    rows = rows_of(turned)
    assert list(rows) == [
        "BM25 (words)", "TF-IDF (words)", "usual tag (words)", "causal", "causal, more steps", "bidirectional",
        "+ MNTP", "+ SimCSE", "+ pairs",
    ]  # fmt: skip
    assert 0.4 < rows.pop("usual tag (words)")["words/xpos"] < 1
    for name, row in rows.items():
        assert ("words/xpos" in row) == ("(words)" not in name)
        assert 0 <= row["mrr@10"] <= 1 and -1 <= row["sts"] <= 1
        assert 0 <= row["triplets"] <= 1
    cosines = {name: row["anisotropy"] for name, row in rows.items() if "(words)" not in name}
    assert {len(layers) for layers in cosines.values()} == {len(cosines["causal"])}
    assert cosines["causal"][0] == cosines["bidirectional"][0]  # no attention before the embeddings
    assert len({layers[-1] for layers in cosines.values()}) == len(cosines)
    assert set(rows["+ pairs"]["rendered"]) == {"retrieval", "sts", "pairs"}
    write_report([turned], turned.parent / "page.md")
    page = (turned.parent / "page.md").read_text()
    assert all(f"| {name} |" in page for name in rows) and "Nearest neighbours" in page
    report = check_page((turned / "report.html").read_text(encoding="utf8"))
    for told in (
        *rows,
        "Map of sentence vectors",
        "anisotropy: mean cosine",
        "Nearest neighbours among the first sentences",
        "/supervised",
    ):
        assert told in report.text, told
    assert all((turned / name / "report.html").exists() for name in ("control", "mntp", "simcse", "words/mntp"))
    config = json.loads((turned / "mntp/run.json").read_text())["config"]
    assert (config["mlm_probability"], config["max_steps"], config["max_seq_length"]) == (0.3, 3, 64)
    assert json.loads((turned / "results.json").read_text())["max_seq_length"] == 64


def test_words_are_scored_on_sentences_that_no_probe_saw(turned: Path, material: dict[str, Path]) -> None:
    texts, gold = [], []
    for block in material["words"].read_text(encoding="utf8").strip().split("\n\n"):
        text = next(line for line in block.splitlines() if line.startswith("# text = ")).removeprefix("# text = ")
        if zlib.crc32(text.encode()) < 0.1 * 2**32:
            lines = [line.split("\t") for line in block.splitlines() if line[0] != "#"]
            texts.append([line[1] for line in lines if line[0].isdigit()])
            gold += [line[4] for line in lines if line[0].isdigit()]
    assert 5 < len(texts) < 50
    for place, name in {"causal": "causal", "control": "causal, more steps", "simcse": "+ SimCSE"}.items():
        run = turned / "words" / place
        words, right, _ = read_predictions(run / "predictions.tsv")
        assert words == texts and list(chain(*right)) == gold
        results = json.loads((run / "results.json").read_text())["tasks"]["xpos"]
        row = rows_of(turned)[name]
        scores = [seed["token_accuracy"] for seed in results["seeds"].values()]
        assert row["words/xpos"] == pytest.approx(np.mean(scores), abs=1e-12)
        assert row["words/xpos F1"] == results["mean"]["macro_f1"] < row["words/xpos"]
        assert len(results["seeds"]) == row["probes"]["xpos"]["seeds"] == 3
        assert (json.loads((run / "run.json").read_text())["attention"]["verdict"] == "causal") == (place != "simcse")


def test_control_sees_the_same_tokens_causally(turned: Path) -> None:
    records = [json.loads((turned / stage / "run.json").read_text()) for stage in ("control", "mntp")]
    assert records[0]["tokens"] == records[1]["tokens"] > 0
    assert [record["config"]["bidirectional"] for record in records] == [False, True]


def test_final_folder_gives_the_same_vectors_in_plain_sentence_transformers(turned: Path) -> None:
    texts = ["A man is walking.", "The weather was warm, and they all went to the park to play.", "No."]
    ours = encode_texts(load_encoder(str(turned / "model"), device="cpu"), texts)
    theirs = SentenceTransformer(str(turned / "model"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    assert (turned / "model").resolve() == (turned / "supervised/model").resolve()


def test_scores_are_those_of_an_independent_computation(turned: Path, material: dict[str, Path]) -> None:
    encoder = SentenceTransformer(str(turned / "simcse/model"), device="cpu")
    sts = read_sts(material["sts"])
    first, second = (encoder.encode(side, normalize_embeddings=True) for side in (sts.first, sts.second))
    assert rows_of(turned)["+ SimCSE"]["sts"] == pytest.approx(
        spearmanr((first * second).sum(1), sts.score_N)[0], abs=1e-4
    )


def test_nothing_that_is_measured_was_trained_on(turned: Path, material: dict[str, Path]) -> None:
    lines = material["text"].read_text(encoding="utf8").splitlines()
    held_out = [line for line in lines if is_held_out(line, 5.0)]
    assert 10 < len(held_out) < 100
    record = json.loads((turned / "mntp/run.json").read_text())
    assert record["data"]["validation"]["documents"] == len(held_out)


def test_the_same_command_again_does_nothing_but_show(turned: Path, stories: Path, material: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in turned.rglob("*") if path.is_file()}
    said = launch(words(stories, material, turned, "--mntp.mlm_probability", "0.3"))
    assert "+ SimCSE" in said and "is done already" in said
    assert before == {path: path.stat().st_mtime_ns for path in turned.rglob("*") if path.is_file()}
    said = launch(words(stories, material, turned, "--mntp.mlm_probability", "0.4"), code=2)
    assert "another configuration" in said and "0.4" in said


def test_what_is_scored_is_not_scored_again(
    turned: Path, stories: Path, material: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that was stopped before its last score, in a copy."""
    folder = tmp_path / "out"
    command = ["turn", str(stories), "--text", str(material["text"]), "--output", str(folder), "--steps_mntp", "1"]
    command += ["--steps_simcse", "1", "--max_seq_length", "64", "--eval_documents", "20", *FEW]
    command += ["--words", str(material["words"]), "--words_task", "upos", "Number"]
    launch(command)
    kept = json.loads((folder / "results.json").read_text())["rows"]
    shutil.rmtree(folder / "words/simcse")
    probes = {path: path.stat().st_mtime_ns for path in folder.glob("words/*/results.json")}
    assert len(probes) == 4
    (folder / "results.json").write_text(json.dumps({"rows": kept[:-1]}))
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    scored: list[str] = []
    score = ladder.score_rung
    monkeypatch.setattr(ladder, "score_rung", lambda rung, trial: scored.append(rung.name) or score(rung, trial))
    launch(command)
    assert scored == ["+ SimCSE"]
    again = json.loads((folder / "results.json").read_text())["rows"]
    assert [row["name"] for row in again] == [row["name"] for row in kept]
    for key in ("mrr@10", "words/upos", "words/feats:Number"):
        assert again[-1][key] == kept[-1][key]
    assert all(path.stat().st_mtime_ns == before for path, before in probes.items())


@pytest.mark.slow
def test_killed_turn_goes_on_where_it_was(
    turned: Path, stories: Path, material: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "turncoder.cli",
        *words(stories, material, folder, "--mntp.mlm_probability", "0.3"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (folder / "mntp/adapter").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "simcse/model").exists(), "it ended before it could be killed"
    written = (folder / "control/model/model.safetensors").stat().st_mtime_ns
    subprocess.run(command, check=True, capture_output=True)
    assert (folder / "control/model/model.safetensors").stat().st_mtime_ns == written
    one, other = ((place / "supervised/model/model.safetensors").read_bytes() for place in (turned, folder))
    assert one == other


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--words", "gone.conllu"], "--words: gone.conllu: no such file"),
        (["--words_task", "upos"], "--words FILE"),
        (["--steps_supervised", "3"], "--pairs"),
        (["--eval_documents", "4"], "eval_documents = 4 must be at least 10"),
        (["--sts", "gone.tsv"], "gone.tsv"),
        (["--pairs", "gone.jsonl"], "--pairs: gone.jsonl"),
        (["--pairs", "gone"], "--pairs: 'gone'"),
        (["--mntp.learning_rat", "1"], "--mntp.learning_rat is not a known flag; did you mean --mntp.learning_rate?"),
        (["--mntp.learning_rate", "fast"], "--mntp.learning_rate = 'fast'"),
        (["--simcse.lora_rr", "1"], "--simcse.lora_rr"),
        (["--mntp.mlm_probability", "2"], "--mntp.mlm_probability = 2"),
        (["--text_column", "body"], "text_column = 'body'"),
        (["--dataset_config_name", "en"], "is a file"),
        (["--simcse.prompt", "Find: "], "does not stay apart"),
        (["--steps_mntp", "0"], "steps_mntp = 0"),
        (["--text", "gone.txt"], "--text: gone.txt"),
        (["--text", "gone"], "--text: 'gone'"),
        (["--validation_text", "gone.txt"], "--validation_text: gone.txt"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_wrong_input_says_what_and_writes_nothing(
    stories: Path, material: dict[str, Path], tmp_path: Path, flags: list[str], message: str, more: list[str]
) -> None:
    command = ["turn", str(stories), "--text", str(material["text"]), "--output", str(tmp_path / "out")]
    said = launch([*command, *flags, *more], code=2)
    assert message in said and "Traceback" not in said
    assert "rows of up to" not in said  # the text is packed after everything was looked at
    assert not (tmp_path / "out").exists()


def test_a_text_too_short_to_hold_any_out_is_refused_by_the_flags_of_turn(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Hello.\n")
    command = ["turn", str(stories), "--text", str(tmp_path / "text.txt"), "--output", str(tmp_path / "out")]
    said = launch(command, code=2)
    assert "--text: of " in said and "--validation_text" in said and not (tmp_path / "out").exists()


def test_dry_run_plans_every_stage_without_weights_and_writes_nothing(
    stories: Path, material: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(opening, "load_backbone")
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path / "cache"))  # no proof is there yet
    said = launch([*words(stories, material, tmp_path / "out"), "--simcse.lora_r", "5", "--dry-run"])
    assert "MNTP: blocks of 64 tokens" in said and "becomes bidirectional" in said
    assert said.count("resolved config") == said.count("memory in all") == 4  # the control is like MNTP
    assert said.count("trainable parameters") == 3 and "xpos (" in said and "states of words, in the cache" in said
    assert "lora_r = 5" in said and f'"{tmp_path / "out" / "mntp"}"' in said
    assert "0.3 M parameters" in said
    assert not any(tmp_path.iterdir())


def test_the_text_is_packed_once_at_the_length_that_follows_from_it(
    stories: Path, material: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    pack = opening.open_blocks
    monkeypatch.setattr(opening, "open_blocks", lambda *given: packed.append(given[2]) or pack(*given))
    sizes = opening.open_all(TurnConfig(model_name_or_path=str(stories), text=str(material["text"]))).sizes
    assert packed == [sizes.mntp["max_seq_length"]] == [128]


@pytest.mark.parametrize(("copies", "length"), [(1, 128), (6, 256), (24, 512)])
def test_length_of_a_block_follows_from_the_first_megabyte(stories: Path, copies: int, length: int) -> None:
    texts = ["Once upon a time. " * 40] * 1500 * copies  # some 0.3 million tokens each
    size = sum(len(text) + 1 for text in texts)
    corpus = Corpus("c", lambda: iter(texts), lambda: "c", size=size)
    assert opening._choose_length(corpus, load_tokenizer(str(stories)), 512) == length


def test_sizes_follow_model_and_text() -> None:
    config = TurnConfig(model_name_or_path="m", text="t")
    small = derive_sizes(config, Sizes(), 10**6, 10**6, 128, 20_000)
    large = derive_sizes(config, Sizes(), 7 * 10**9, 10**8, 512, 10**6)
    assert small.mntp["learning_rate"] == pytest.approx(5e-3)
    assert large.mntp["learning_rate"] == pytest.approx(5e-5, rel=0.25)  # LLM2Vec's
    assert large.simcse["learning_rate"] == pytest.approx(3e-5, rel=0.25)
    assert large.supervised["learning_rate"] == pytest.approx(2e-4, rel=0.25)
    assert large.mntp["max_steps"] == large.simcse["max_steps"] == 1000
    rows = small.mntp["per_device_train_batch_size"]
    assert small.mntp["max_steps"] == min(1000, math.ceil(3 * 10**6 / (rows * 128)))
    told = derive_sizes(TurnConfig(model_name_or_path="m", text="t", steps_mntp=7), Sizes(), 10**6, 10**6, 128, 20_000)
    assert told.mntp["max_steps"] == 7


def test_steps_follow_what_the_user_says_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"per_device_train_batch_size": "4", "gradient_accumulation_steps": "3"}
    config = TurnConfig(model_name_or_path="m", text="t", pairs="p", mntp=stage, simcse=stage, supervised=stage)
    monkeypatch.setattr("turncoder.turn.sizes.PartialState", lambda **_: SimpleNamespace(num_processes=2))
    sizes = derive_sizes(config, Sizes(), 10**6, 10**5, 128, 2000, 1000)
    assert sizes.mntp["max_steps"] == math.ceil(3 * math.ceil(10**5 / 128) / 24)
    assert sizes.simcse["max_steps"] == 3 * 2000 / 24
    assert "24 a step: 98 steps (3 epochs)" in sizes.reasons[1] and "24 a step: 250" in sizes.reasons[2]
    assert "24 a step: 125 steps (3 epochs)" in sizes.reasons[3]
    config = TurnConfig(model_name_or_path="m", text="t", mntp={"num_train_epochs": "9", "learning_rate": "1e-6"})
    sizes = derive_sizes(config, Sizes(), 10**6, 10**6, 128, 2000)
    assert "(9 epochs)" in sizes.reasons[1] and "learning rate 1e-06" in sizes.reasons[1]
    config = TurnConfig(model_name_or_path="m", text="t", mntp={"max_steps": "77"})
    assert "77 steps" in derive_sizes(config, Sizes(), 10**6, 10**6, 128, 2000).reasons[1]


@pytest.mark.parametrize(
    ("given", "asked", "steps"),
    [
        ({}, None, 1000),  # of 2,500 that an epoch has at 8 rows a step
        ({"num_train_epochs": "2"}, None, 5000),
        ({"max_steps": "4000"}, None, 4000),
        ({"stop_after_n_steps": "1200"}, None, 1200),
        ({"num_train_epochs": "0.1"}, None, 250),
        ({}, 20_000, 20_000),
    ],
)
def test_every_stage_takes_1000_steps_at_most_unless_it_is_told_how_many(
    given: dict[str, str], asked: int | None, steps: int
) -> None:
    names = ("mntp", "simcse", "supervised")
    keys = {name: {"per_device_train_batch_size": "8", **given} for name in names}
    config = TurnConfig(
        model_name_or_path="m", text="t", pairs="p", **keys, **{f"steps_{name}": asked for name in names}
    )
    sizes = derive_sizes(config, Sizes(), 10**6, 20_000 * 128, 128, 20_000, 20_000)
    assert [f" {steps:,} steps " in reason for reason in sizes.reasons[1:]] == [True] * 3
    stages = configure_stages(config, sizes)
    assert {name: count_steps(stages[name], 20_000)[0] for name in ("control", *names)} == dict.fromkeys(
        ("control", *names), steps
    )


def test_frozen_weights_are_bfloat16_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turncoder.turn.sizes.has_bf16", lambda: True)
    config = TurnConfig(model_name_or_path="m", text="t", pairs="p", simcse={"train_mode": "full"})
    sizes = derive_sizes(config, Sizes(), 10**6, 10**6, 128, 2000, 1000)
    assert sizes.mntp["bf16"] and sizes.mntp["dtype"] == sizes.supervised["dtype"] == "bfloat16"
    assert "dtype" not in sizes.simcse  # all of it trains, in float32


def test_a_file_is_what_exists_or_looks_like_one(tmp_path: Path) -> None:
    (tmp_path / "v1.0").mkdir()
    assert all(map(names_file, [str(tmp_path / "v1.0"), "gone.txt", "a/b.jsonl.gz", "b.tsv", "./x", "~/x", "/x"]))
    assert not any(map(names_file, ["owner/finepdfs-v1.0", "wikitext", "allenai/c4"]))
    config = TurnConfig(model_name_or_path="m", text="o/d-v1.0", dataset_config_name="en", pairs="o/pairs")
    stages = configure_stages(config, Sizes())
    assert (stages["mntp"].dataset_name, stages["simcse"].dataset_config_name) == ("o/d-v1.0", "en")
    assert stages["supervised"].dataset_config_name is None


def test_rungs_are_opened_alike_and_without_a_model_folder_it_says_how(
    stories: Path, material: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rungs = tmp_path / "out", []
    monkeypatch.setattr(ladder, "score_rung", lambda rung, _: rungs.append(rung) or {"name": rung.name})
    command = ["turn", str(stories), "--text", str(material["text"]), "--output", str(folder), "--steps_mntp", "1"]
    command += ["--steps_simcse", "1", "--mntp.max_seq_length", "48", "--simcse.save_merged", "never"]
    said = launch([*command, "--trust_remote_code", "--cache_dir", str(tmp_path / "hub")])
    assert not (folder / "model").is_symlink() and "SentenceTransformer(" not in said
    assert f"load_encoder({str(folder / 'simcse')!r})" in said and f"turncoder merge {folder / 'simcse'}" in said
    kept = 512  # what load_encoder reads where no folder says
    assert len(rungs) == 5 and {rung.options["max_seq_length"] for rung in rungs} == {kept}
    assert {(rung.options["cache_dir"], rung.options["trust_remote_code"]) for rung in rungs} == {
        (str(tmp_path / "hub"), True)
    }
    assert f"reads {kept} tokens" in (folder / "report.html").read_text()
    (folder / "model").mkdir()
    assert tell_opening(folder) == f"SentenceTransformer({str(folder / 'model')!r})"


def test_where_there_are_no_links_the_model_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    logging.getLogger("turncoder").propagate = True
    (tmp_path / "simcse/model").mkdir(parents=True)
    ladder._link(tmp_path / "model", Path("simcse/model"))
    assert f"(Operation not supported): the model is {tmp_path / 'simcse/model'}" in caplog.text
    assert tell_opening(tmp_path) == f"SentenceTransformer({str(tmp_path / 'simcse/model')!r})"


def test_overwrite_starts_anew(turned: Path, stories: Path, material: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(turned, folder, symlinks=True)
    short = ["turn", str(stories), "--text", str(material["text"]), "--output", str(folder), "--steps_mntp", "1",
             "--steps_simcse", "1", "--max_seq_length", "64", "--eval_documents", "20", *FEW]  # fmt: skip
    assert "another configuration" in launch(short, code=2)
    launch([*short, "--overwrite"])
    assert not (folder / "supervised").exists()
    assert (folder / "model").resolve() == (folder / "simcse/model").resolve()
