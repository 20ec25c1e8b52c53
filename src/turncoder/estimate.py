"""What encoding, mining or merging would cost, before it is done: parameters, memory, tokens, time, disk, files.

The model and the texts are opened as the work itself would open them; nothing is written, but that a hub's files go to
the caches of their libraries.
"""

import logging
import tempfile
import time
from pathlib import Path

from turncoder.budget import count_token_bytes
from turncoder.config.encoding import EncodeConfig, MergeConfig, MineConfig
from turncoder.config.stages import to_toml
from turncoder.data.files import names_file
from turncoder.encode.encoder import open_encoder
from turncoder.encode.texts import open_sides
from turncoder.encode.vectors import METRICS, describe_job, look_at_job, name_shards
from turncoder.encode.wordvectors import open_word_reader, open_word_source
from turncoder.encode.workers import count_gpus, digest_encoder, open_batches
from turncoder.merging import check_output, name_settings, open_merged
from turncoder.mining import look_at_mine
from turncoder.plan import Plan, add_weights
from turncoder.preview import SAMPLES, cache_in, read_tokens
from turncoder.samples import show_text

__all__ = ["plan_encode", "plan_merge", "plan_mine"]

MERGED_FILES = ("model.safetensors", "config.json", "tokenizer files", "README.md", "modules.json",
                "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
                "turncoder.json")  # fmt: skip
TIMED = 256  # texts
SHOWN_WORDS = 12

logger = logging.getLogger("turncoder")


def plan_encode(config: EncodeConfig) -> Plan:
    """Plan an encoding.

    Raises
    ------
    UserError
        Whatever `turncoder.encode.vectors.encode_file` would refuse before it begins.
    """
    if config.words:
        with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder)):
            return _plan_words(config)
    plan = Plan(to_toml(config), legend="texts as the model would see them: [what is pooled]")
    if not names_file(str(config.input_file)):
        logger.warning("INPUT: %s is fetched into the cache of `datasets`, to be counted", config.input_file)
    out, texts, kept = look_at_job(config)
    gpus = count_gpus(config)
    device = "cuda:0" if gpus > 1 else config.device
    batches = open_batches(config, device, config.batch_tokens or kept.get("batch_tokens"))
    facts = {"fingerprint": digest_encoder(batches), "dimension": batches.width, "batch_tokens": batches.batch_tokens}
    processes = config.processes or max(1, gpus)
    manifest = describe_job(config, texts, facts, kept, processes)
    sample = texts.sample or ("a",)
    plan.samples = [show_text(batches.encoder, text, batches.prompt) for text in sample[:SAMPLES]]
    add_weights(plan, batches.encoder)
    model = batches.encoder.transformers_model
    lanes = max(1, batches.count_lanes(batches.batch_tokens) // processes)
    at_once = "a batch" if lanes == 1 else f"{lanes} batches, side by side"
    plan.memory[at_once] = lanes * batches.batch_tokens * count_token_bytes(model, batches.encoder.max_seq_length)
    plan.memory["vectors of a shard"] = 4 * min(manifest["shard_texts"], texts.count) * batches.width
    plan.disk = {"vectors": 4 * texts.count * batches.width}
    batches.encode(sample[:1])  # what comes first takes longer
    start = time.perf_counter()
    _, counts = batches.encode(sample)
    seconds = time.perf_counter() - start
    plan.steps = {"texts": texts.count, "tokens": round(texts.count * counts.tokens / counts.distinct)}
    plan.steps["tokens_of_a_batch"] = batches.batch_tokens
    plan.seconds = seconds / counts.distinct * texts.count / processes
    plan.assumptions.append(f"tokens and time: from the first {len(sample)} texts, encoded now, as if none came twice")
    if processes > 1:
        plan.assumptions.append(f"memory: of each of {processes} processes; time: {processes} times one's speed")
    if out.suffix in (".npy", ".parquet"):
        plan.files = [str(out)]
    else:
        names = name_shards(out, manifest, texts)
        shards = str(names[0]) if len(names) == 1 else f"{names[0]} ... {names[-1].name} ({len(names)} files)"
        plan.files = [str(out / "manifest.json"), str(out / METRICS), shards]
        if kept:
            there = sum(name.exists() for name in names)
            plan.assumptions.append(f"the job is taken up: {there} of {len(names)} shards are there, and counted too")
    return plan


def _plan_words(config: EncodeConfig) -> Plan:
    """Plan vectors of words, from the first texts."""
    plan = Plan(to_toml(config), legend="words and their tokens, as the model would read them")
    out, source = open_word_source(config)
    reader = open_word_reader(config)
    tokenizer = reader.encoder.tokenizer
    data = next(source.shards(TIMED))
    for row in range(min(SAMPLES, len(data))):
        one = data.select([row])
        found = reader.align(one)
        read = [
            read_tokens(found.tokens[begin + first : begin + last].tolist(), tokenizer)
            for begin, first, last in zip(
                (found.window_ends - found.lengths)[found.word_window], found.word_first, found.word_last, strict=True
            )
        ]
        pairs = [f"{word} [{tokens}]" for word, tokens in zip(one["words"][0], read, strict=True)]
        plan.samples.append(" ".join(pairs[:SHOWN_WORDS]) + " ..." * (len(pairs) > SHOWN_WORDS))
    add_weights(plan, reader.encoder)
    start = time.perf_counter()
    alignment = reader.align(data)
    width = max((vectors.shape[1] for vectors in reader.read(alignment)), default=0)
    seconds = time.perf_counter() - start
    share = source.count / len(data)
    words, tokens = (round(alignment.counts[name] * share) for name in ("words", "tokens"))
    plan.steps = {"texts": source.count, "words": words, "tokens": tokens}
    plan.seconds = seconds * share
    plan.disk = {"vectors": 4 * words * width}
    plan.assumptions.append(f"words, tokens and time: from the first {len(data)} texts, read now")
    plan.files = [str(out)]
    return plan


def plan_mine(config: MineConfig) -> Plan:
    """Plan the mining of hard negatives.

    Raises
    ------
    UserError
        Whatever `turncoder.mining.mine_file` would refuse before it begins.
    """
    plan = Plan(to_toml(config), legend="anchors and candidates as the model would see them: [what is pooled]")
    with tempfile.TemporaryDirectory() as folder, cache_in(Path(folder)):
        out, candidates = look_at_mine(config)
    encoder = open_encoder(config, device=config.device)
    sides = open_sides(encoder, config.query_prompt, config.document_prompt, config.batch_tokens)
    anchors = list(candidates.own())
    plan.steps = {"pairs": len(candidates.pairs), "anchors": len(anchors), "candidates": len(candidates.corpus)}
    add_weights(plan, encoder)
    plan.memory["vectors"] = 4 * (len(anchors) + len(candidates.corpus)) * sides[0].width
    plan.seconds = 0.0
    for batches, texts in zip(sides, (anchors, candidates.corpus), strict=True):
        sample = texts[:TIMED]
        plan.samples += [show_text(batches.encoder, text, batches.prompt) for text in sample[:SAMPLES]]
        batches.encode(sample[:1])  # what comes first takes longer
        plan.seconds += batches.encode(sample)[1].seconds / len(sample) * len(texts)
    plan.assumptions.append(f"time: of the encoding alone, from up to {TIMED} texts of each side, encoded now")
    plan.files = [str(out)]
    return plan


def plan_merge(config: MergeConfig) -> Plan:
    """Plan a merge.

    Raises
    ------
    UserError
        Whatever `turncoder.merging.merge_to_folder` would refuse.
    """
    plan = Plan(to_toml(config))
    out = check_output(config)
    encoder = open_merged(config)
    add_weights(plan, encoder)
    plan.disk = {"weights": plan.memory["model"]}
    plan.files = [str(out / name) for name in (*MERGED_FILES, *name_settings(encoder))]
    return plan
