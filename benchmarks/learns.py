"""MNTP learns: what the objective gives, apart from what the text gives.

Each model is trained five times for equally many steps on the same rows, through the same trainer: MNTP (masked tokens,
bidirectional attention), as full training and as LoRA, and the controls: the masked objective under causal
attention, both ways, and ordinary causal training on clean text. All are scored on the same held-out rows and masks:
loss in nats, top-1 and top-5, the state at t-1 predicting token t. Every row has the causal and the bidirectional
model of step 0 beside it.

    python benchmarks/learns.py --shared ../shared --quickstart quickstart

The first model is stories260K on TinyStories, with the settings under which another implementation reported loss 5.569
and accuracy 0.102 at step 0, 3.507 and 0.188 at step 100, 2.933 and 0.309 at step 400 (256 held-out rows of 128). The
second is quickstart's own decoder on its docstrings; the folder is made by ``turncoder quickstart`` where it is absent.
"""

import argparse
import json
import tempfile
from pathlib import Path

from machine import write_results
from turncoder import MntpConfig
from turncoder.quickstart import run as run_quickstart
from turncoder.train.mntp import train

ARMS = {
    "MNTP, full": {"train_mode": "full"},
    "MNTP, LoRA 16": {"train_mode": "lora", "lora_r": 16},
    "control: masked, causal attention, full": {"train_mode": "full", "bidirectional": False},
    "control: masked, causal attention, LoRA 16": {"train_mode": "lora", "lora_r": 16, "bidirectional": False},
    "control: causal training, full": {
        "train_mode": "full",
        "bidirectional": False,
        "data_collator_type": "unmasked",
    },
}
REPORTED = {"0": [5.569, 0.102], "100": [3.507, 0.188], "400": [2.933, 0.309]}


def measure(folder: Path, steps: int, every: int, lora_learning_rate: float, **settings: object) -> dict:
    """Train every arm and give step -> scores of each."""
    arms: dict[str, dict] = {}
    for name, arm in ARMS.items():
        values = {**settings, **arm}
        if arm["train_mode"] == "lora":
            values["learning_rate"] = lora_learning_rate
        run = train(
            MntpConfig(
                **values,
                output_dir=str(folder / name.replace(" ", "-").replace(":", "").replace(",", "")),
                max_steps=steps,
                eval_strategy="steps",
                eval_steps=every,
                logging_steps=every,
                save_strategy="no",
                save_merged="never",
                max_seq_length=128,
                warmup_steps=max(1, steps // 20),
            )
        )
        arms[name] = {}
        for line in (run / "metrics.jsonl").read_text(encoding="utf8").splitlines():
            row = json.loads(line)
            if "eval_loss" in row:
                scores = {key: round(row[f"eval_{key}"], 4) for key in ("loss", "accuracy", "top5_accuracy")}
                if "model" in row:
                    arms[f"step 0, {row['model']}"] = scores
                else:
                    arms[name][str(row["step"])] = scores
        print(name, arms[name], flush=True)
    return {
        "settings": {**settings, "lora_learning_rate": lora_learning_rate, "steps": steps, "max_seq_length": 128},
        "scores": arms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared", help="data and models")
    parser.add_argument("--quickstart", type=Path, default=Path("quickstart"), help="output folder of quickstart")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=100)
    args = parser.parse_args()
    run_quickstart(output=args.quickstart)
    with tempfile.TemporaryDirectory() as folder:
        stories = measure(
            Path(folder, "stories"),
            args.steps,
            args.every,
            3e-3,
            model_name_or_path=str(args.shared / "models" / "stories260k-hf"),
            train_file=str(args.shared / "data" / "tinystories_sample" / "tiny_stories.txt"),
            validation_split_percentage=10.0,
            max_eval_samples=256,
            mlm_probability=0.2,
            learning_rate=1e-3,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
        )
        own = measure(
            Path(folder, "own"),
            args.steps // 2,
            args.every // 2,
            2e-3,
            model_name_or_path=str(args.quickstart / "decoder"),
            train_file=str(args.quickstart / "text" / "train.jsonl"),
            validation_file=str(args.quickstart / "text" / "held_out.jsonl"),
            max_eval_samples=256,
            mlm_probability=0.2,
            learning_rate=1e-3,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=16,
        )
    for result in (stories, own):
        for key in ("model_name_or_path", "train_file", "validation_file"):
            if key in result["settings"]:
                result["settings"][key] = Path(result["settings"][key]).name
    path = write_results(
        "learns",
        {"stories260k": stories, "quickstart": own, "reported elsewhere, stories260k (loss, accuracy)": REPORTED},
    )
    print(path)


if __name__ == "__main__":
    main()
