"""Run folders as stages leave them, written by hand."""

import json
import random

from scipy.stats import spearmanr

from turncoder.evaluate.wordfiles import write_confusion, write_predictions
from turncoder.evaluate.words import score, summarise, tally


def make_run(folder, *, lora_r=8, results=True, status="done", **config):
    folder.mkdir(parents=True)
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
            "predicted_tokens": 9,
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


def make_words_run(folder, tasks=("upos",), *, seeds=(42, 43), error=0.2, sentences=200, drawn=False, **config):
    """A folder as a run on words leaves it, with labels that are wrong as often as ``error`` says."""
    folder.mkdir()
    rng = random.Random(folder.name)
    found = {}
    for task in tasks:
        names = ["O", "B-PER", "I-PER", "B-LOC"] if task == "ner" else ["NOUN", "VERB", "DET"]
        gold = [[names[(row + place) % len(names)] for place in range(8)] for row in range(sentences)]
        scored = {}
        for seed in seeds:
            said = [[tag if rng.random() > error else rng.choice(names) for tag in tags] for tags in gold]
            scored[str(seed)] = {**score(tally(gold, said, task == "ner")), "alignment": "same_token"}
        own = folder if len(tasks) == 1 else folder / task.replace("/", "_")
        own.mkdir(exist_ok=True)
        write_predictions(own / "predictions.tsv", [["word"] * 8] * sentences, gold, said)
        if drawn:
            write_confusion(tally(gold, said, False), own)
        found[task] = {"seeds": scored, **summarise(list(scored.values())), "words_scored": 8 * sentences}
        found[task]["metric"] = "span_f1" if task == "ner" else "token_accuracy"
    (folder / "results.json").write_text(
        json.dumps(
            {"tasks": found, "train_mode": "probe", "test_file": "test.conllu", "fingerprint": f"words {sentences}"}
        )
    )
    record = {"stage": "words", "status": "done", "config": {"output_dir": str(folder), **config}, "wall_time_s": 12.0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def make_sentences_run(folder, *, better=0.0, texts=40, tasks=("sts", "find"), revision="r1", **config):
    """A folder as ``evaluate sentences`` leaves it; ``better`` is how far scores are moved towards what is right."""
    (folder / "items").mkdir(parents=True)
    rng = random.Random(7)
    gold = [rng.random() * 5 for _ in range(texts)]
    noise = [rng.random() * 5 for _ in range(texts)]
    scores = [(1 - better) * wrong + better * right for right, wrong in zip(gold, noise, strict=True)]
    found = [(one / 5 + better) / 2 for one in noise]
    items = {
        "sts": {"metric": "cosine", "parts": {"test/default": {"cosine": scores, "gold": gold}}},
        "find": {
            "metric": "ndcg_at_10",
            "parts": {"test/default": {"id": [f"q{number}" for number in range(len(found))], "score": found}},
        },
    }
    mains = {
        "sts": ("STS", "cosine_spearman", float(spearmanr(scores, gold).statistic)),
        "find": ("Retrieval", "ndcg_at_10", sum(found) / len(found)),
    }
    found = {}
    for name in tasks:
        kind, metric, value = mains[name]
        (folder / "items" / f"{name}.json").write_text(json.dumps(items[name]))
        found[name] = {
            "type": kind,
            "data": {"revision": revision, "splits": ["test"], "subsets": ["default"]},
            "main_metric": metric,
            "main_score": value,
            "metrics": {metric: value},
            "baselines": {"bm25": 0.7, "tfidf": 0.71, "static": 0.31 + better / 100},
            "texts": 2 * texts,
            "seconds": 1.5,
            "example": f"[<s> a text of {name}]",
            "prompts": {},
            "items": texts,
        }
    model = {"name": "mine", "fingerprint": "f", "parameters": 1000}
    (folder / "results.json").write_text(json.dumps({"model": model, "mteb": "2.26.0", "tasks": found}))
    config = {"output_dir": str(folder), **config}
    record = {"stage": "sentences", "status": "done", "config": config, "wall_time_s": 3.0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def make_turn(folder, *, seed=1, gain=0.1, fingerprint="abc", documents=60, status="done", **config):
    """A folder as ``turn`` leaves it, with its MNTP run."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    shared = random.Random(0)
    points = [[shared.random(), shared.random()] for _ in range(documents)]
    rows = [{"name": "BM25 (words)", "ranks": [shared.randint(1, 20) for _ in range(documents)], "mrr@10": 0.3}]
    for number, name in enumerate(("causal", "bidirectional", "+ MNTP", "+ SimCSE")):
        ranks = [1 if rng.random() < gain * (1 + number) else rng.randint(2, 40) for _ in range(documents)]
        mrr = sum(1 / rank for rank in ranks if rank <= 10) / documents
        told = {"ranks": ranks, "mrr@10": mrr, "sts": 0.4 + number / 10 + rng.random() / 100, "model": "m"}
        told["map"] = {"queries": points, "documents": points[::-1], "shares": [0.3, 0.2]}
        told["neighbours"] = [["another <b>sentence</b>", 0.5 + number / 10]]
        told["rendered"] = {"retrieval": "[<s> A text.]"}
        told["anisotropy"] = [0.1, 0.2 + number / 10]
        rows.append({"name": name, **told})
    whole = {"title": "What each step gave", "rows": rows, "lines": ["One line."], "sentences": ["A sentence."]}
    (folder / "results.json").write_text(json.dumps(whole))
    kept = [
        {key: value for key, value in row.items() if key not in ("ranks", "map", "neighbours", "anisotropy")}
        for row in rows
    ]
    common = {"status": status, "started": "2026-01-02T03:04:05+00:00", "versions": {"turncoder": "0.1.0"}}
    record = {"stage": "turn", "config": {"seed": seed, "text": "t.txt", **config}, "results": {"rows": kept}, **common}
    (folder / "run.json").write_text(json.dumps(record))
    mntp = make_run(folder / "mntp")
    inner = json.loads((mntp / "run.json").read_text())
    (mntp / "run.json").write_text(json.dumps({**inner, **common, "data": {"fingerprint": fingerprint}}))
    return folder
