"""Headless against cross-entropy: held-out bits per byte at equal tokens and at equal time.

    python benchmarks/headless.py --folder headless      # hours; goes on where it was; results/headless_KIND.json

A small Llama (width 128, 3 layers) and a BERT of the same size, from random weights, 200 steps of 1,024 tokens and,
since a seventh of them is masked, 600 for BERT, on English text of ../shared, with tokenizers of 8,000, 32,000 and
128,000 ids trained on it. Arms:

``cross-entropy``       over the selected rows, chunked, exact: no worse baseline than there is
``cross-entropy + log p``  the same, with the unigram log-probabilities as a fixed bias of the logits
``headless``            contrastive weight tying, as many tokens; scored with log p, and without (``through E alone``)
``headless, equal time``  as many steps as cross-entropy has time for, by the ratio of their step times (measured
                        first, in turns, on this machine)

Of the paragraphs, every twentieth is reported on, and the one before it is for choices: the learning rate is chosen
there for each arm from the same, on the smallest vocabulary, with a seed that is not reported. Three seeds. The
bits per byte of masked models are those of the masked tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
TEXTS = ("wiki_paragraphs_en/wiki_en.txt", "wikitext2/wiki.valid.tokens", "wikitext2/wiki.test.tokens")
VOCABULARIES = (8_000, 32_000, 128_000)
RATES = {"clm": (1e-3, 3e-3, 9e-3), "mlm": (3e-4, 1e-3, 3e-3, 9e-3)}
SEEDS = (1, 2, 3)
STEPS = {"clm": 200, "mlm": 600}
BATCH, LENGTH = 8, 128
EVERY = 20  # paragraphs
TIMED_STEPS, TURNS, LONGEST = 12, 3, 30
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 344,
    "max_position_embeddings": LENGTH,
}
ARMS: dict[str, dict] = {
    "cross-entropy": {"objective": "cross_entropy"},
    "cross-entropy + log p": {"objective": "cross_entropy", "head_prior": True},
    "headless": {"objective": "cwt"},
}
KINDS = {"clm": "llama", "mlm": "bert"}
SCORED = {"clm": 250, "mlm": 1000}  # rows; of masked models a row has a seventh of the tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the runs here, and go on with them; default: a temporary one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(VOCABULARIES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headless-") as temporary:
        home = options.folder or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TURNCODER_CACHE", str(home / "cache"))
        write_texts(home)
        for kind in options.kinds:
            rows = []
            rates = {arm: choose_rate(home, kind, arm) for arm in ARMS}
            for vocabulary in options.vocabularies:
                ratio = measure_ratio(home, kind, vocabulary)
                for arm, rate in rates.items():
                    rows.append(summarise(home, kind, vocabulary, arm, rate, STEPS[kind], 1.0))
                steps = round(STEPS[kind] * min(ratio, LONGEST))
                rows.append(summarise(home, kind, vocabulary, "headless", rates["headless"], steps, ratio))
                finish(kind, rows)


def finish(kind: str, rows: list[dict]) -> None:
    """Print and write what was measured of a kind, and draw it beside what there is of the other."""
    from machine import RESULTS, write_results

    for row in rows:
        alone = f", through E alone {row['bits_alone']:.3f}" if "bits_alone" in row else ""
        print(
            f"{row['kind']} {row['vocabulary']:>7,}  {row['arm']:24} {row['steps']:>6} steps  lr {row['rate']:g}  "
            f"{row['bits']:.3f} ± {row['deviation']:.3f} bits per byte{alone}",
            flush=True,
        )
    setting = {"steps": STEPS[kind], "tokens_a_step": BATCH * LENGTH, "shape": SHAPE, "rates": RATES[kind]}
    print(write_results(f"headless_{kind}", {**setting, "seeds": SEEDS, "rows": rows}), flush=True)
    paths = [RESULTS / f"headless_{one}.json" for one in KINDS]
    draw([row for path in paths if path.exists() for row in json.loads(path.read_text())["rows"]])


def write_texts(home: Path) -> None:
    """Put the English text of ../shared into files, a paragraph a line: to train on, to choose on, to report on."""
    if (home / "report.txt").exists():
        return
    lines = []
    for name in TEXTS:
        lines += (SHARED / "data" / name).read_text(encoding="utf8").splitlines()
    for name in ("nltk_state_union", "nltk_inaugural"):
        for file in sorted((SHARED / "data" / name).glob("*.txt")):
            lines += file.read_text(encoding="utf8", errors="ignore").splitlines()
    lines = list(dict.fromkeys(f"{line.strip()}\n" for line in lines if len(line.split()) > 8))
    parts = {"train": [], "choose": lines[EVERY - 2 :: EVERY], "report": lines[EVERY - 1 :: EVERY]}
    parts["train"] = [line for number, line in enumerate(lines) if number % EVERY < EVERY - 2]
    for name, part in parts.items():
        (home / f"{name}.txt").write_text("".join(part), encoding="utf8")


def train(home: Path, name: str, kind: str, vocabulary: int, arm: str, rate: float, steps: int, seed: int) -> Path:
    """Pretrain one model, or find it; return its run folder."""
    import turncoder

    extra = {} if kind == "clm" else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape = {**SHAPE, **extra, "tie_word_embeddings": True}
    return turncoder.train(
        turncoder.PretrainConfig(
            kind=kind,
            config_name=KINDS[kind],
            config_overrides=shape,
            train_tokenizer="bpe",
            vocab_size=vocabulary,
            train_file=str(home / "train.txt"),
            validation_file=str(home / ("choose.txt" if name == "rate" else "report.txt")),
            max_seq_length=LENGTH,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=rate,
            warmup_steps=0.05,
            logging_steps=max(1, steps // 20),
            save_strategy="no",
            evaluate_step_zero=False,
            max_eval_samples=SCORED[kind],
            do_eval=name != "timed",
            seed=seed,
            training={"adam_beta2": 0.95},
            output_dir=str(
                home / "runs" / f"{name}-{kind}-{vocabulary}-{arm}-{rate:g}-{steps}-{seed}".replace(" ", "_")
            ),
            **ARMS[arm],
        )
    )


def read(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def choose_rate(home: Path, kind: str, arm: str) -> float:
    """Choose the learning rate by held-out loss on the smallest vocabulary, with a seed that is not reported."""
    losses = {
        rate: read(train(home, "rate", kind, VOCABULARIES[0], arm, rate, STEPS[kind], 0))["results"]["loss"]
        for rate in RATES[kind]
    }
    return min(losses, key=losses.__getitem__)


def measure_ratio(home: Path, kind: str, vocabulary: int) -> float:
    """How many steps of headless training take as long as one of cross-entropy: medians of runs in turns."""
    path = home / f"ratio-{kind}-{vocabulary}.json"
    if not path.exists():
        seconds: dict[str, list[float]] = {"cross-entropy": [], "headless": []}
        for turn in range(TURNS):
            for arm, found in seconds.items():
                rows = [
                    json.loads(line)
                    for line in (train(home, "timed", kind, vocabulary, arm, 1e-3, TIMED_STEPS, turn) / "metrics.jsonl")
                    .read_text()
                    .splitlines()
                ]
                found += [BATCH * LENGTH / row["tokens_per_second"] for row in rows[2:] if "tokens_per_second" in row]
        ratio = statistics.median(seconds["cross-entropy"]) / statistics.median(seconds["headless"])
        path.write_text(json.dumps({"ratio": ratio, "seconds": seconds}))
    return json.loads(path.read_text())["ratio"]


def summarise(home: Path, kind: str, vocabulary: int, arm: str, rate: float, steps: int, ratio: float) -> dict:
    """Mean and standard deviation over the seeds."""
    runs = [train(home, "run", kind, vocabulary, arm, rate, steps, seed) for seed in SEEDS]
    bits = [read(run)["results"]["bits_per_byte"] for run in runs]
    row = {
        "kind": kind,
        "vocabulary": vocabulary,
        "arm": arm if ratio == 1 else "headless, equal time",
        "steps": steps,
        "rate": rate,
        "ratio": round(ratio, 2),
        "bits": statistics.mean(bits),
        "deviation": statistics.stdev(bits),
        "seeds": bits,
    }
    if arm == "headless":
        row["bits_alone"] = statistics.mean(score_alone(run, kind) for run in runs)
    return row


def score_alone(run: Path, kind: str) -> float:
    """Bits per byte of the same held-out rows through E alone: the published way to give a headless model a head."""
    path = run / "alone.json"
    if not path.exists():
        import dataclasses

        import turncoder
        from turncoder.config.stages import load_config

        config = load_config(turncoder.PretrainConfig, run / "config.toml", [])
        folder = run.with_name(run.name + "-alone")
        # Cross-entropy, evaluated only, from weights that have lost their prior
        bare = run.with_name(run.name + "-bare")
        if not bare.exists():
            import shutil

            shutil.copytree(run / "model", bare)
            (bare / "turncoder.json").unlink()
        scored = turncoder.train(
            dataclasses.replace(
                config,
                objective="cross_entropy",
                config_name=None,
                config_overrides={},
                train_tokenizer=None,
                vocab_size=None,
                model_name_or_path=str(bare),
                do_train=False,
                output_dir=str(folder),
            )
        )
        path.write_text(json.dumps(read(scored)["results"]))
    return json.loads(path.read_text())["bits_per_byte"]


def draw(rows: list[dict]) -> None:
    """Bits per byte over the size of the vocabulary, a line for each arm, a panel for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    from machine import RESULTS

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, panels = pyplot.subplots(1, len(kinds), figsize=(5.5 * len(kinds), 4.2), squeeze=False)
    for panel, kind in zip(panels[0], kinds, strict=True):
        for number, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
            points = [row for row in rows if row["kind"] == kind and row["arm"] == arm]
            style = {"color": f"C{number}", "marker": "osD^"[number], "capsize": 3}
            panel.errorbar(
                [row["vocabulary"] for row in points],
                [row["bits"] for row in points],
                [row["deviation"] for row in points],
                label=arm,
                **style,
            )
        panel.set_xscale("log")
        panel.set_xticks(VOCABULARIES, [f"{size:,}" for size in VOCABULARIES])
        panel.minorticks_off()
        panel.set_xlabel("tokens of the vocabulary")
        panel.set_ylabel("held-out bits per byte")
        panel.set_title("decoder" if kind == "clm" else "encoder (masked tokens)")
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "headless.png", dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
