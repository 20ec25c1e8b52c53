"""``evaluate glue`` from the command line: whole runs on slices of real tasks, what comes of them, and going on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launching import BOTH, PROCESS, kill_after_checkpoint, launch, launch_process, losses, write_words
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score

import turncoder
from turncoder import GlueConfig
from turncoder.cli import main
from turncoder.evaluate import glue
from turncoder.report.summary import read_run

QUICK = {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "max_seq_length": 48}
SOURCES = {
    "QNLI": ("qnli/dev.tsv", True, {"train": (1, 49), "dev": (49, 73)}),
    "STS-B": ("stsb/stsb-train.tsv", True, {"train": (1, 41), "dev": (41, 65)}),
    "pawsx": ("pawsx/dev-en.tsv", False, {"train-en": (0, 40), "dev-en": (40, 60), "test-en": (60, 80)}),
}


@pytest.fixture(autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNCODER_CACHE", str(tmp_path_factory.getbasetemp() / "glue cache"))


@pytest.fixture(scope="session")
def tasks(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices of QNLI, STS-B and PAWS-X in GLUE's layout."""
    home = tmp_path_factory.mktemp("glue")
    for name, (source, headed, parts) in SOURCES.items():
        lines = (shared / "data" / source).read_text(encoding="utf8").split("\n")
        for part, (start, stop) in parts.items():
            cut(home / name / f"{part}.tsv", [lines[0]] * headed + lines[start:stop])
    lines = (shared / "data" / "pawsx" / "dev-ko.tsv").read_text(encoding="utf8").split("\n")
    for part, (start, stop) in {"train-ko": (0, 40), "dev-ko": (40, 60), "test-ko": (60, 80)}.items():
        cut(home / "pawsx" / f"{part}.tsv", lines[start:stop])
    return home


def cut(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


@pytest.fixture
def write(tasks: Path, tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., list[str]]:
    """Write the command of a run."""

    def give(name: str = "run", model: str = "llama", **changes: Any) -> list[str]:
        flags = {**QUICK, "data": tasks, "tasks": ["qnli"], "seeds": [1], "output_dir": tmp_path / name, **changes}
        return ["evaluate", *write_words("glue", flags), "--model_name_or_path", str(tiny(model))]

    return give


def read_results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf8"))


def read_table(path: Path) -> tuple[list[str], list[str]]:
    """Gold and predicted labels."""
    with path.open(encoding="utf8", newline="") as file:
        head, *rows = csv.reader(file, delimiter="\t")
    assert head == ["gold", "predicted"]
    gold, said = zip(*rows, strict=True)
    return list(gold), list(said)


def test_two_tasks_by_two_seeds(write: Callable[..., list[str]], tasks: Path, tmp_path: Path) -> None:
    said = launch(write(tasks=["QNLI", "stsb"], seeds=[1, 2]))
    run = tmp_path / "run"
    results = read_results(run)
    assert list(results["tasks"]) == ["qnli", "stsb"]
    gold = [line.split("\t")[-1] for line in (tasks / "QNLI" / "dev.tsv").read_text().splitlines()[1:]]
    found = []
    for seed in ("1", "2"):
        wanted, guessed = read_table(run / "qnli" / f"seed-{seed}" / "predictions.tsv")
        assert wanted == gold and set(guessed) <= {"entailment", "not_entailment"}
        accuracy = accuracy_score(wanted, guessed)
        numbers = [list(map(float, side)) for side in read_table(run / "stsb" / f"seed-{seed}" / "predictions.tsv")]
        ranks, line = spearmanr(*numbers).statistic, pearsonr(*numbers).statistic
        found.append((accuracy, ranks, line, (accuracy + (ranks + line) / 2) / 2))
        assert results["tasks"]["qnli"]["seeds"][seed] == {"accuracy": accuracy, "steps": 12, "chosen_step": 12}
        told = results["tasks"]["stsb"]["seeds"][seed]
        assert (told["spearman"], told["pearson"]) == pytest.approx((ranks, line))
        assert not (run / "qnli" / f"seed-{seed}" / "checkpoints").exists()
    one, two = found
    places = [("qnli", "accuracy"), ("stsb", "spearman"), ("stsb", "pearson")]
    for number, (task, metric) in enumerate(places):
        told = results["tasks"][task]
        assert told["mean"][metric] == pytest.approx((one[number] + two[number]) / 2)
        assert told["std"][metric] == pytest.approx(abs(one[number] - two[number]) / 2**0.5)
    assert results["average"]["mean"] == pytest.approx((one[3] + two[3]) / 2)
    assert results["average"]["std"] == pytest.approx(abs(one[3] - two[3]) / 2**0.5)
    assert "mean ± standard deviation of 2 seeds" in said and "average of the tasks" in said
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done" and record["tokens"] > 0 and record["wall_time_s"] > 0
    rows = read_run(run)["rows"]
    assert [row["model"] for row in rows] == ["full qnli", "full stsb", "full average"]
    assert rows[0]["class_accuracy"] == results["tasks"]["qnli"]["mean"]["accuracy"] and rows[0]["seeds"] == 2
    assert rows[2]["std"]["average"] == results["average"]["std"]
    assert main(["report", str(run), str(run / "qnli" / "seed-1")]) == 0


def test_a_task_is_learnt(write: Callable[..., list[str]], tmp_path: Path) -> None:
    """A word says the label: an encoder that is trained, and read, finds it."""
    rows = [f"{'red' if number % 2 else 'dog'} ball number {number % 7}\t{number % 2}" for number in range(64)]
    for split in ("train", "dev"):
        cut(tmp_path / "own" / "sst2" / f"{split}.tsv", ["sentence\tlabel", *rows])
    for mode, rate in (("full", 1e-2), ("lora", 3e-2)):
        launch(write(mode, data=tmp_path / "own", tasks=["sst2"], train_mode=mode, learning_rate=rate,
                     num_train_epochs=6))  # fmt: skip
        assert read_results(tmp_path / mode)["tasks"]["sst2"]["mean"]["accuracy"] == 1


@pytest.mark.parametrize("model", ["bert", "deberta"])
def test_the_headless_recipe_keeps_the_best_epoch(model: str, write: Callable[..., list[str]], tmp_path: Path) -> None:
    launch(write(model=model, recipe="headless", num_train_epochs=3, warmup_steps=0, learning_rate=1e-2))
    inner = tmp_path / "run" / "qnli" / "seed-1"
    rows = [json.loads(line) for line in (inner / "metrics.jsonl").read_text().splitlines()]
    by_step = {row["step"]: row["eval_accuracy"] for row in rows if "eval_accuracy" in row}
    assert list(by_step) == [6, 12, 18]
    told = read_results(tmp_path / "run")["tasks"]["qnli"]["seeds"]["1"]
    assert told["accuracy"] == max(by_step.values()) == by_step[told["chosen_step"]]
    config = json.loads((inner / "run.json").read_text())["config"]
    assert (config["pooling"], config["class_balanced"], config["choose"]) == ("cls", True, "best_epoch")


def test_languages_without_training_and_with_it(write: Callable[..., list[str]], tmp_path: Path) -> None:
    launch(write("zero", tasks=["pawsx"]))
    launch(write("own", tasks=["pawsx"], translate_train=True, languages=["ko"]))
    zero, own = (read_results(tmp_path / name)["tasks"] for name in ("zero", "own"))
    assert list(zero) == ["pawsx en", "pawsx ko"] and list(own) == ["pawsx ko"]
    zero_run = tmp_path / "zero" / "pawsx" / "seed-1"
    assert read_table(zero_run / "predictions-en.tsv")[0] == read_table(zero_run / "predictions-ko.tsv")[0]
    assert (tmp_path / "own" / "pawsx-ko" / "seed-1" / "predictions-ko.tsv").exists()
    assert zero["pawsx ko"]["rows"] == own["pawsx ko"]["rows"] == 20


def test_what_is_done_is_not_done_again(
    write: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before the third of four trainings, a run goes on with that one, to the same result."""
    both = {"tasks": ["qnli", "stsb"], "seeds": [1, 2], "max_steps": 2}
    launch(write("whole", **both))
    done: list[str] = []
    train_one = glue.train_one

    def train(config: GlueConfig, run: Any, job: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(f"{job.name} {config.seed}")
        train_one(config, run, job)

    monkeypatch.setattr(glue, "train_one", train)
    assert main(write("cut", **both)) == 130
    assert done == ["qnli 1", "qnli 2"] and not (tmp_path / "cut" / "results.json").exists()
    done[:] = [""]
    assert main(write("cut", **both)) == 130
    assert done == ["", "stsb 1"]
    done.clear()
    launch(write("cut", **both))
    assert done == ["stsb 2"]
    assert read_results(tmp_path / "cut")["tasks"] == read_results(tmp_path / "whole")["tasks"]
    assert "learning_rate: 0.001 -> 0.0001" in launch(write("cut", **both, learning_rate=1e-4), code=2)


def test_one_batch_of_eight_is_eight_of_one(write: Callable[..., list[str]], tmp_path: Path) -> None:
    plain = {"classifier_dropout": 0.0, "class_balanced": True, "logging_steps": 1, "num_train_epochs": 1}
    for size in (8, 1):
        launch(write(str(size), per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, **plain))
    one, eight = (losses(tmp_path / name / "qnli" / "seed-1") for name in ("8", "1"))
    assert one == pytest.approx(eight, rel=1e-3) and len(one) == 6
    tables = [(tmp_path / name / "qnli" / "seed-1" / "predictions.tsv").read_bytes() for name in ("8", "1")]
    assert tables[0] == tables[1]


def test_a_dry_run_writes_nothing(write: Callable[..., list[str]], tmp_path: Path) -> None:
    said = launch([*write(tasks=["qnli", "stsb"], seeds=[1, 2, 3], max_seq_length=200), "--dry-run"])
    assert not (tmp_path / "run").exists()
    for part in ("What came into force after the new constitution was herald?", "=> entailment", "trainings", " 6 "):
        assert part in said
    assert str(tmp_path / "run" / "stsb" / "seed-3") in said


def test_from_python(tasks: Path, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    config = GlueConfig(
        model_name_or_path=str(tiny("modernbert")), data=str(tasks), tasks=("stsb",), seeds=(3,),
        output_dir=str(tmp_path / "run"), **QUICK,
    )  # fmt: skip
    assert turncoder.train(config) == tmp_path / "run"
    assert read_results(tmp_path / "run")["tasks"]["stsb"]["std"] == {"spearman": None, "pearson": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": ["cola"]}, "has no folder cola"),
        ({"tasks": ["qnly"]}, "no task 'qnly'; did you mean qnli?"),
        ({"tasks": ["qnli"], "pooling": "bos"}, "pooling = 'bos' is not one of"),
        ({"train_mode": "lora", "lora_target_modules": ["nowhere"]}, "nowhere"),
        ({"tasks": ["stsb", "qnli"], "prompt": "Is it so? "}, "does not stay apart from the text"),
        ({"training.optim": "best"}, "best"),
        ({"recipe": "headless", "bidirectional": False}, "the first token sees nothing of the text"),
        ({"tasks": ["pawsx"], "languages": ["en", "fr"]}, "has no test-fr.tsv"),
    ],
    ids=str,
)
def test_wrong_input_leaves_nothing(
    changes: dict[str, Any], said: str, write: Callable[..., list[str]], tmp_path: Path
) -> None:
    told = launch(write(**changes), code=2)
    assert said in told and told.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_exactly(write: Callable[..., list[str]], tmp_path: Path) -> None:
    long = {"num_train_epochs": 8, "train_mode": "lora", "choose": "best_epoch", "learning_rate": 1e-2}
    launch(write("whole", **long))
    inner = Path("qnli") / "seed-1"
    kill_after_checkpoint([*PROCESS, *write("cut", **long)], tmp_path / "cut" / inner, 12)
    assert not (tmp_path / "cut" / inner / "results.json").exists(), "it ended before it could be killed"
    launch(write("cut", **long))
    whole, cut = ((tmp_path / name / inner / "predictions.tsv").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert read_results(tmp_path / "whole") == read_results(tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_equal_one(write: Callable[..., list[str]], tmp_path: Path) -> None:
    plain = {"classifier_dropout": 0.0, "class_balanced": True, "logging_steps": 1, "num_train_epochs": 2}
    launch(write("one", per_device_train_batch_size=8, **plain))
    launch_process([*BOTH, *write("two", per_device_train_batch_size=4, **plain)])
    one, two = (losses(tmp_path / name / "qnli" / "seed-1") for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-3) and len(one) == 12
    tables = [(tmp_path / name / "qnli" / "seed-1" / "predictions.tsv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
