"""MNTP by contrast (``mntp --objective cwt``) against the exact loss: at equal tokens and at equal time.

    python benchmarks/cwt_mntp.py --folder cwt-mntp      # an hour on a core, goes on where it was

A headless Llama (width 128, 3 layers, 128,000 ids) is pretrained on the English text of benchmarks/headless.py, then
turned by MNTP (LoRA 16, 8 x 128 tokens a step, a fifth masked) in three arms: ``exact``, ``cwt`` with as many steps,
and ``cwt, equal time`` with as many as exact has time for, by the ratio of their step times (measured in turns).
Each arm has its learning rate from the same two, by held-out loss with a seed that is not reported; three seeds.
Scored on held-out text over the whole vocabulary, whatever was trained: cross-entropy and accuracy at masked tokens;
and by a UPOS probe on the frozen states (UD English-EWT, 3,000 sentences to train on, chosen on dev, tested once).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

from headless import SHAPE, SHARED, read, write_texts

VOCABULARY, PRETRAINING, STEPS = 128_000, 800, 200
BATCH, LENGTH = 8, 128
RATES, SEEDS = (2e-3, 5e-3), (1, 2, 3)
TIMED_STEPS, TURNS = 12, 3
OBJECTIVES = {"exact": "cross_entropy", "cwt": "cwt"}
WORDS = SHARED / "data/ud_english_ewt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="keep the runs here, and go on with them")
    home = parser.parse_args().folder
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TURNCODER_CACHE", str(home / "cache"))
    write_texts(home)
    base = pretrain(home)
    ratio = measure_ratio(home, base)
    rows = {}
    for arm in OBJECTIVES:
        losses = {rate: read(turn(home, base, "rate", arm, rate, STEPS, 0))["results"]["loss"] for rate in RATES}
        rate = min(losses, key=losses.__getitem__)
        rows[arm] = summarise(home, base, arm, rate, STEPS)
        if arm == "cwt":
            rows["cwt, equal time"] = summarise(home, base, arm, rate, round(STEPS * ratio))
    from machine import write_results

    for arm, row in rows.items():
        told = ", ".join(f"{name} {value['mean']:.4f} ± {value['std']:.4f}" for name, value in row["scores"].items())
        print(f"{arm:16} {row['steps']:4} steps, lr {row['rate']:g}: {told}")
    untrained = read(base)["results"]
    print(write_results("cwt_mntp", {"steps": STEPS, "ratio": round(ratio, 3), "decoder": untrained, "arms": rows}))


def pretrain(home: Path) -> Path:
    import turncoder

    return turncoder.train(
        turncoder.PretrainConfig(
            kind="clm",
            config_name="llama",
            config_overrides={**SHAPE, "tie_word_embeddings": True},
            train_tokenizer="bpe",
            vocab_size=VOCABULARY,
            sparse_embeddings=True,
            train_file=str(home / "train.txt"),
            validation_file=str(home / "choose.txt"),
            max_eval_samples=100,
            max_seq_length=LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=PRETRAINING,
            learning_rate=3e-3,
            warmup_steps=0.05,
            save_strategy="no",
            evaluate_step_zero=False,
            training={"adam_beta2": 0.95},
            output_dir=str(home / "decoder"),
        )
    )


def turn(home: Path, base: Path, name: str, arm: str, rate: float, steps: int, seed: int) -> Path:
    import turncoder

    return turncoder.train(
        turncoder.MntpConfig(
            model_name_or_path=str(base),
            objective=OBJECTIVES[arm],
            train_file=str(home / "train.txt"),
            validation_file=str(home / ("choose.txt" if name == "rate" else "report.txt")),
            max_seq_length=LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            mlm_probability=0.2,
            learning_rate=rate,
            lora_r=16,
            logging_steps=1 if name == "timed" else steps,
            save_strategy="no",
            evaluate_step_zero=False,
            do_eval=name != "timed",
            max_eval_samples=400,
            save_merged="always",
            seed=seed,
            output_dir=str(home / f"{name}-{arm}-{rate:g}-{steps}-{seed}"),
        )
    )


def measure_ratio(home: Path, base: Path) -> float:
    """How many steps of the contrast take as long as one of the exact loss: medians of runs in turns."""
    seconds: dict[str, list[float]] = {arm: [] for arm in OBJECTIVES}
    for turned in range(TURNS):
        for arm, found in seconds.items():
            run = turn(home, base, "timed", arm, 1e-3, TIMED_STEPS, turned)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            found += [BATCH * LENGTH / row["tokens_per_second"] for row in rows[2:] if "tokens_per_second" in row]
    return statistics.median(seconds["exact"]) / statistics.median(seconds["cwt"])


def summarise(home: Path, base: Path, arm: str, rate: float, steps: int) -> dict:
    """Mean and standard deviation over the seeds."""
    found: dict[str, list[float]] = {"loss": [], "accuracy": [], "upos": []}
    for seed in SEEDS:
        run = turn(home, base, "run", arm, rate, steps, seed)
        results = read(run)["results"]
        found["loss"].append(results["loss"])
        found["accuracy"].append(results["accuracy"])
        found["upos"].append(probe(run, seed))
    scores = {
        name: {"mean": statistics.mean(values), "std": statistics.stdev(values), "seeds": values}
        for name, values in found.items()
    }
    return {"steps": steps, "rate": rate, "scores": scores}


def probe(run: Path, seed: int) -> float:
    import turncoder

    made = turncoder.train(
        turncoder.WordsConfig(
            model_name_or_path=str(run / "model"),
            train_file=str(WORDS / "en_ewt-ud-train.conllu"),
            validation_file=str(WORDS / "en_ewt-ud-dev.conllu"),
            test_file=str(WORDS / "en_ewt-ud-test.conllu"),
            task=("upos",),
            train_mode="probe",
            max_train_samples=3000,
            seeds=(seed,),
            output_dir=str(run / "upos"),
        )
    )
    (row,) = json.loads((made / "results.json").read_text())["tasks"].values()
    return row["mean"]["token_accuracy"]


if __name__ == "__main__":
    main()
