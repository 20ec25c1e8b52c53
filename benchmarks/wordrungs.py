"""What each rung is worth to words: part of speech and names, from the frozen states and fully trained.

    python benchmarks/rungs.py --part en --seeds 1 --folder rungs     # decoder, control, MNTP, SimCSE: an hour
    python benchmarks/wordrungs.py --rungs rungs/en-1                # writes results/wordrungs.json and .png

The decoder is the quickstart's (1.3 M parameters, Wikipedia paragraphs), causal and with attention made bidirectional,
then after MNTP and after SimCSE; the control has trained causally on as many tokens as MNTP. Probes learn from all
training sentences, full training from 3,000 of them. Everything is chosen on dev; test is scored once. UD English-EWT
(UPOS, XPOS) and UniversalNER's names on the same sentences. Beside them: the label that a word has most often in the
training sentences.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import tomllib
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
TREEBANK = SHARED / "data/ud_english_ewt"
NAMES = SHARED / "data/uner_english_ewt"
MODELS = {
    "causal": ("decoder", "bidirectional = false"),
    "causal, more steps": ("turn/control", "bidirectional = false"),
    "bidirectional": ("decoder", "bidirectional = true"),
    "+ MNTP": ("turn/mntp", ""),
    "+ SimCSE": ("turn/simcse", ""),
}
GRID = """
[tasks.treebank]
task = ["upos", "xpos"]
train_file = "{treebank}/en_ewt-ud-train.conllu"
validation_file = "{treebank}/en_ewt-ud-dev.conllu"
test_file = "{treebank}/en_ewt-ud-test.conllu"

[tasks.names]
task = "ner_tags"
train_file = "{names}/en_ewt-ud-train.prerelease.iob2"
validation_file = "{names}/en_ewt-ud-dev.iob2"
test_file = "{names}/en_ewt-ud-test.iob2"

"""
REGIMES = {
    "probe": """
[regimes.probe]
train_mode = "probe"
layer = "{layer}"
""",
    "full": """
[regimes.full]
train_mode = "full"
max_train_samples = 3000
per_device_train_batch_size = 32
num_train_epochs = 6
early_stopping_patience = 3
learning_rate = 1e-3
seeds = [1, 2, 3, 4, 5]
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rungs", type=Path, required=True, help="a folder that rungs.py kept")
    parser.add_argument("--regime", choices=REGIMES, action="append", help="default: both")
    parser.add_argument("--layer", default="-1", help="that probes read: also all, or mix")
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    options = parser.parse_args()
    from machine import RESULTS, write_results
    from turncoder.config import settings
    from turncoder.config.words import WordsConfig
    from turncoder.grid import run_grid
    from turncoder.turn.rungwords import score_usual

    grid = GRID.format(treebank=TREEBANK, names=NAMES)
    for regime in options.regime or REGIMES:
        grid += REGIMES[regime].format(layer=options.layer)
    for name, (place, keys) in MODELS.items():
        grid += f'\n[models."{name}"]\nmodel_name_or_path = "{options.rungs / place}"\n{keys}\n'
    with tempfile.TemporaryDirectory(prefix="wordrungs-") as temporary:
        home = options.folder or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        (home / "grid.toml").write_text(grid, encoding="utf8")
        folder = run_grid(WordsConfig(grid=str(home / "grid.toml"), output_dir=str(home / "runs")))
        rows = json.loads((folder / "grid.json").read_text())
        name = "wordrungs" if options.layer == "-1" else f"wordrungs-{options.layer}"
        shutil.copyfile(folder / "grid.png", RESULTS / f"{name}.png")
        print((folder / "grid.md").read_text())
        usual: dict[str, float] = {}
        for keys in tomllib.loads(grid)["tasks"].values():
            usual |= score_usual(settings.load(WordsConfig, None, {"model_name_or_path": str(options.rungs), **keys}))
        print(f"a word's usual label: {usual}")
    print(write_results(name, {"rows": rows, "usual_label": usual}))


if __name__ == "__main__":
    main()
