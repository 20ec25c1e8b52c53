"""A UPOS probe on UD English-EWT: training, choosing and testing, against a frozen forward in every step.

    python benchmarks/words.py --part probe

The backbone is a Llama of width 256 and 4 layers with random weights and GPT-2's tokenizer, made to look both ways,
float32, on the CPU. Every arm is a process of its own whose clock starts after its imports; all read the words by the
same reader.

``turncoder``: a whole run of ``turncoder words``, from the files to ``results.json``, with 3 passes over the training
words, at one seed and learning rate, and at 5 seeds x 4 learning rates.

``llm2vec``: what the word-level script of LLM2Vec does, in plain torch and this environment (the package on PyPI does
not hold that script, and its own needs transformers 4): words tokenised one by one, batches of 8 sentences in random
order padded to the longest, the frozen model run in every one of 4,000 steps (2.6 passes), the mean of a word's tokens,
dropout 0.1, a linear head, AdamW; then the test sentences in batches of 32, each padded to 512 tokens. It chooses
nothing: its evaluations on the way are left out, in its favour. 200 steps and 4 batches of the test are measured and
scaled up; ``dynamic`` is the same with test batches padded to their longest sentence, all of them measured.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
SPLITS = {split: str(SHARED / f"data/ud_english_ewt/en_ewt-ud-{split}.conllu") for split in ("train", "dev", "test")}
SHAPE = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
STEPS, MEASURED, WARMUP, BATCH, TEST_BATCH, TEST_LENGTH, TEST_MEASURED = 4000, 200, 10, 8, 32, 512, 4
PASSES = 3
TOKENS, TRAIN_WORDS, CLASSES = 300_904, 204_577, 17  # of all splits (part alignment), of the training words, of UPOS
WEIGHTS = 4 * (4 * 256**2 + 3 * 256 * 688)
GRIDS = {"one": ((1,), (3e-3,)), "twenty": ((1, 2, 3, 4, 5), (1e-3, 3e-3, 1e-2, 3e-2))}
TARGETS = {"llm2vec": 5, "dynamic": 2, "twenty_over_one": 1.3}


def measure_probe(rounds: int) -> dict:
    """Let the arms take turns, and compare the medians."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model")
        ask("make", model)
        runs: dict[str, list[dict]] = {"llm2vec": [], **{name: [] for name in GRIDS}}
        for _ in range(rounds):
            for name, found in runs.items():
                found.append(ask(name, model))
                print(json.dumps({name: found[-1]}), flush=True)
    arms = {name: merge(found) for name, found in runs.items()}
    compared = {}
    for clock in ("seconds", "cpu_seconds"):
        one = total(arms["one"], clock)
        theirs = arms["llm2vec"][clock]
        compared[clock] = {
            "llm2vec": round((theirs["read"] + theirs["train"] + theirs["test_padded"]) / one, 2),
            "dynamic": round((theirs["read"] + theirs["train"] + theirs["test_dynamic"]) / one, 2),
            "twenty_over_one": round(total(arms["twenty"], clock) / one, 2),
        }
    shape = {**SHAPE, "steps": STEPS, "steps_measured": MEASURED, "batch": BATCH, "test_batch": TEST_BATCH,
             "test_length": TEST_LENGTH, "test_batches_measured": TEST_MEASURED, "passes": PASSES}  # fmt: skip
    return {"rounds": rounds, "shape": shape, "targets": TARGETS, "arms": arms, "compared": compared}


def total(arm: dict, clock: str) -> float:
    return sum(arm[clock].values())


def merge(runs: list[dict]) -> dict:
    """Take the medians of every phase."""
    merged = dict(runs[0])
    for clock in ("seconds", "cpu_seconds"):
        merged[clock] = {
            phase: round(statistics.median(run[clock][phase] for run in runs), 2) for phase in runs[0][clock]
        }
    merged["gflops"] = [run["gflops"] for run in runs]
    return merged


def ask(task: str, model: str) -> dict:
    """Do a task in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TURNCODER_CACHE": cache}
        threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        command = [sys.executable, __file__, task, model]
        environment = {**os.environ, **quiet, **threads}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


class Clock:
    """The wall clock and the processor time of one phase after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Let what went by belong to no phase."""
        self.wall, self.busy = time.perf_counter(), time.process_time()

    def stop(self, phase: str, scale: float = 1) -> None:
        """Add what went by since the last call to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0) + scale * (time.perf_counter() - self.wall)
        self.cpu_seconds[phase] = self.cpu_seconds.get(phase, 0) + scale * (time.process_time() - self.busy)
        self.restart()

    def tell(self) -> dict:
        """Give the time of each phase."""
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "gflops": measure_rate()}


def measure_rate() -> float:
    """GFLOP/s of a square float32 product in processor time: what one core can do."""
    import torch

    one = torch.randn(1024, 1024)
    torch.mm(one, one)
    found = []
    for _ in range(5):
        busy = time.process_time()
        torch.mm(one, one)
        found.append(2 * 1024**3 / (time.process_time() - busy) / 1e9)
    return round(max(found), 1)


def make(model: str) -> dict:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizers/gpt2")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **SHAPE)
    LlamaModel(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    return {}


def run_turncoder(model: str, grid: str) -> dict:
    from turncoder.config.words import WordsConfig
    from turncoder.train import probing, words

    clock = Clock()
    note(probing, "compute_features", clock, "features")
    note(probing, "fit_heads", clock, "heads")
    note(words, "open_splits", clock, "read")
    note(words, "score_tagger", clock, "test")
    seeds, rates = GRIDS[grid]
    config = WordsConfig(
        model_name_or_path=model,
        bidirectional=True,
        train_file=SPLITS["train"],
        validation_file=SPLITS["dev"],
        test_file=SPLITS["test"],
        task=("upos",),
        alignment="same_token",
        seeds=seeds,
        learning_rate=rates,
        num_train_epochs=PASSES,
        output_dir=str(Path(model).parent / f"{grid}-{time.time_ns()}"),
    )
    clock.restart()
    run = words.train(config)
    clock.stop("rest")
    mean = json.loads((run / "results.json").read_text())["tasks"]["upos"]["mean"]
    # A head's product, and that of its gradient; the states need none
    heads = 4 * PASSES * TRAIN_WORDS * SHAPE["hidden_size"] * CLASSES * len(seeds) * len(rates)
    told = {"token_accuracy": round(mean["token_accuracy"], 4), "tokens": TOKENS}
    return {**clock.tell(), **told, "tflop": round((2 * WEIGHTS * TOKENS + heads) / 1e12, 3)}


def note(module: object, name: str, clock: Clock, phase: str) -> None:
    """Give the time that a function takes to a phase."""
    inner: Callable = getattr(module, name)

    def timed(*arguments: object, **named: object) -> object:
        clock.stop("rest")
        found = inner(*arguments, **named)
        clock.stop(phase)
        return found

    setattr(module, name, timed)


def run_llm2vec(model: str) -> dict:
    import torch
    from transformers import AutoModel, AutoTokenizer, get_scheduler

    from turncoder.data.labels import LabelSet
    from turncoder.data.words import open_words
    from turncoder.model.attention import make_bidirectional

    torch.manual_seed(0)
    clock = Clock()
    words = {split: open_words(file=SPLITS[split]) for split in ("train", "test")}
    labels = LabelSet.collect(words["train"], "upos")
    tokenizer = AutoTokenizer.from_pretrained(model, add_prefix_space=True)
    tokenizer.pad_token = tokenizer.eos_token
    rows = {split: tokenise(tokenizer, one, labels) for split, one in words.items()}
    backbone = AutoModel.from_pretrained(model).requires_grad_(False)
    make_bidirectional(backbone)
    dropout, head = torch.nn.Dropout(0.1), torch.nn.Linear(SHAPE["hidden_size"], len(labels))
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-4)
    scheduler = get_scheduler("linear", optimizer, 0, STEPS)
    clock.stop("read")
    order, tokens = torch.randperm(len(rows["train"])).tolist(), {"train": 0, "test_padded": 0, "test_dynamic": 0}
    for step in range(WARMUP + MEASURED):
        if step == WARMUP:
            clock.restart()
            tokens["train"] = 0
        batch = [rows["train"][row] for row in order[step * BATCH : (step + 1) * BATCH]]
        states_MD, labels_M, padded = read(backbone, batch, tokenizer.pad_token_id, None)
        loss = torch.nn.functional.cross_entropy(head(dropout(states_MD)), labels_M, ignore_index=-100)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        tokens["train"] += padded
    clock.stop("train", STEPS / MEASURED)
    dropout.eval()
    batches = [rows["test"][row : row + TEST_BATCH] for row in range(0, len(rows["test"]), TEST_BATCH)]
    scales = {"train": STEPS / MEASURED, "test_padded": len(batches) / TEST_MEASURED, "test_dynamic": 1}
    for phase, length, some in (("test_padded", TEST_LENGTH, TEST_MEASURED), ("test_dynamic", None, len(batches))):
        clock.restart()
        with torch.no_grad():
            for batch in batches[:some]:
                states_MD, labels_M, padded = read(backbone, batch, tokenizer.pad_token_id, length)
                (head(states_MD).argmax(1) == labels_M).sum().item()
                tokens[phase] += padded
        clock.stop(phase, scales[phase])
    tokens = {phase: round(count * scales[phase]) for phase, count in tokens.items()}
    tflop = {phase: round(2 * WEIGHTS * count / 1e12, 3) for phase, count in tokens.items()}
    return {**clock.tell(), "tokens": tokens, "tflop": tflop}


def tokenise(tokenizer, words, labels) -> list[tuple[list[int], list[int], list[int]]]:
    """Give ids, the word of each token, and the label of each word, of every sentence."""
    encoded = tokenizer(list(words.forms()), is_split_into_words=True, truncation=True, max_length=TEST_LENGTH)
    tags = [labels.number(one).tolist() for one in words.labels("upos")]
    return [(ids, encoded.word_ids(row), tags[row]) for row, ids in enumerate(encoded["input_ids"])]


def read(backbone, batch: list, pad: int, length: int | None):
    """Run the model on sentences, padded: the mean state of each word's tokens, its label, and the tokens that ran."""
    import torch

    length = length or max(len(ids) for ids, _, _ in batch)
    ids_BL = torch.full((len(batch), length), pad)
    mask_BL = torch.zeros_like(ids_BL)
    places, owners, labels, before = [], [], [], 0
    for row, (ids, word_ids, tags) in enumerate(batch):
        ids_BL[row, : len(ids)] = torch.tensor(ids)
        mask_BL[row, : len(ids)] = 1
        places += range(row * length, row * length + len(ids))
        owners += [before + word for word in word_ids]
        labels += tags
        before += len(tags)
    hidden_TD = backbone(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state.flatten(0, 1)
    owner_T = torch.tensor(owners)
    count_M = torch.bincount(owner_T, minlength=len(labels)).clamp(min=1)
    sum_MD = hidden_TD.new_zeros(len(labels), hidden_TD.shape[1]).index_add_(
        0, owner_T, hidden_TD[torch.tensor(places)]
    )
    return sum_MD / count_M[:, None], torch.tensor(labels), ids_BL.numel()


TASKS: dict[str, Callable[[str], dict]] = {
    "make": make,
    "llm2vec": run_llm2vec,
    "one": lambda model: run_turncoder(model, "one"),
    "twenty": lambda model: run_turncoder(model, "twenty"),
}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](sys.argv[2])))
