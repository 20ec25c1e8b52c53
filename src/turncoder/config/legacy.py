"""What the keys of LLM2Vec, its word-level fork and Bg2Vec mean here, and what is done otherwise: tables only.

`translate` walks the tables. ``docs/migrate.md`` has them in prose, with reasons; a test holds the two together.
"""

from collections.abc import Collection
from typing import Any

from turncoder.errors import UserError

__all__ = [
    "ALIASES",
    "IGNORED",
    "OLD_NAMES",
    "REFUSED",
    "RENAMED",
    "SWITCHED_BACK",
    "WORD_FAULTS",
    "tell_differences",
    "tell_silence",
    "translate",
]

ALIASES = {"output": "output_dir", "adapter": "adapters", "pooling_mode": "pooling"}
"""Our own short names, understood without a notice."""

RENAMED = {
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "peft_addr": "adapters",
    "peft_model_name_or_path": "adapters",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "push_to_hub_model_id": "hub_model_id",
    "cls_addr": "evaluate",
    "batch_size": "per_device_eval_batch_size",
}
"""Old name -> the name it has here (ours, or a TrainingArguments field of today)."""

OF_WORDS = frozenset({"batch_size", "cls_addr"})
"""Those of them that only files of word tasks have: elsewhere ``batch_size`` may well mean that of training."""

IGNORED = {
    "overwrite_output_dir": "only --overwrite deletes a run; the same command again resumes",
    "save_only_model": "checkpoints always hold what resuming needs",
    "resume_from_checkpoint": "the newest complete checkpoint is resumed from by itself",
    "overwrite_cache": "prepared blocks are found again by a fingerprint of text, tokenizer and settings",
    "streaming": "corpora are always read as a stream, in constant memory",
    "low_cpu_mem_usage": "transformers loads weights without a second copy by itself",
    "use_fast_tokenizer": "fast tokenizers are used wherever there is one",
    "use_auth_token": "log in with `hf auth login` or set HF_TOKEN; tokens are not kept in run records",
    "token": "log in with `hf auth login` or set HF_TOKEN; tokens are not kept in run records",
    "model_type": "the architecture is read from the model's config",
    "include_inputs_for_metrics": "metrics are sums taken on the device; inputs are not needed",
    "label_names": "labels are made here",
    "remove_unused_columns": "the data set holds only what is used",
    "save_safetensors": "weights are always safetensors",
    "logging_dir": "logs go to metrics.jsonl in the run folder; TENSORBOARD_LOGGING_DIR moves TensorBoard's",
    "group_by_length": "rows of unequal length are grouped by length by themselves",
    "half_precision_backend": "transformers has one backend now",
    "fp16_backend": "transformers has one backend now",
    "fp16_opt_level": "apex is gone from transformers",
    "use_ipex": "gone from transformers",
    "jit_mode_eval": "gone from transformers",
    "use_mps_device": "an Apple GPU is found by itself",
    "tpu_num_cores": "gone from transformers",
    "tpu_metrics_debug": "gone from transformers",
    "past_index": "gone from transformers",
    "mp_parameters": "gone from transformers",
    "ray_scope": "gone from transformers",
    "include_tokens_per_second": "tokens_per_second is always in metrics.jsonl",
    "experiment_id": "--output names the run folder",
    "model_class": "whether a model is a decoder or an encoder is read from its config",
    "push_to_hub_organization": "gone from transformers; write it into hub_model_id",
    "push_to_hub_token": "log in with `hf auth login` or set HF_TOKEN; tokens are not kept in run records",
    "hub_token": "log in with `hf auth login` or set HF_TOKEN; tokens are not kept in run records",
    "hub_strategy": "a run is published once, when it is done",
    "hub_always_push": "a run is published once, when it is done",
}
"""Key -> why it has nothing to say here. Noted when it asks for something, then dropped."""

REFUSED = {
    "config_overrides": "training a changed architecture from scratch is not MNTP; drop the key",
    "config_name": "the model's own config.json is used; drop the key, or edit a copy of the model folder",
    "loss_class": "the loss is HardNegativeNLLLoss's formula, from sentence-transformers; drop the key",
    "adafactor": "write optim = 'adafactor'",
    "torchdynamo": "write torch_compile = true",
    "fsdp_min_num_params": "write it into fsdp_config",
    "fsdp_transformer_layer_cls_to_wrap": "write it into fsdp_config",
    "dispatch_batches": "write it into accelerator_config",
    "split_batches": "write it into accelerator_config",
}
"""Key -> what to do instead, for keys that would change the run and cannot be honoured."""

OLD_NAMES = (
    *ALIASES, *RENAMED, *IGNORED, *REFUSED, "dataset_file_path", "retroactive_labels", "full_fine_tune",
)  # fmt: skip

ASKS_NOTHING: dict[str, tuple[Any, ...]] = {
    "use_fast_tokenizer": (None, True, "True", "true"),
    "remove_unused_columns": (None, True, "True", "true"),
    "loss_class": (None, "HardNegativeNLLLoss"),
}
"""Values of an ignored key that ask for nothing; for the others: None, false and empty."""


SWITCHES = frozenset({"push_to_hub"})
"""Keys that are dropped where they ask for nothing, and mean what they say elsewhere."""


MNTP = ("mntp",)
CONTRAST = ("simcse", "supervised")
ALL = (*MNTP, *CONTRAST)

SWITCHED_BACK = {
    "documents isolated": MNTP,
    "head frozen": MNTP,
    "schedule laid out for the steps that are run": ALL,
    "held-out documents by hash": MNTP,
    "empty lines dropped": MNTP,
    "no remainder lost": MNTP,
    "rows at step 0": MNTP,
    "underscores can be masked": MNTP,
    "samples drawn from the whole corpus": MNTP,
    "equal texts once": CONTRAST,
    "texts held out": CONTRAST,
}
"""What is done otherwise, as ``docs/migrate.md`` calls it -> the commands where ``--as-llm2vec`` switches it back."""

WORD_FAULTS = {
    "frozen means frozen": 'Runs called "frozen" train the whole backbone and save the head alone',
    "encoders label their own tokens": (
        "Files of encoders inherit `retroactive_labels = next_token`: a baseline that labels the word after"
    ),
    "every word counts": "Words beyond the limit, and the first one where there is no BOS, drop out of the score",
    "words by their characters": "Words are tokenised one by one, which byte-level tokenizers never saw in training",
    "one evaluator": 'Four metrics across the arms; "precision" is token accuracy; dropout is on at test time',
    "UPOS from the data": "UPOS is derived from XPOS by hand, which is wrong for 10.6 % of the words of UD English-EWT",
    "labels from the data": "Label tables are written into the code; a label beyond them stops the run",
    "several seeds": "One seed",
}
"""What ``words`` does otherwise, as the page calls it -> what LLM2Vec does."""


def tell_differences(stage: str) -> str:
    """Say in one line what a stage does otherwise and what ``--as-llm2vec`` switches back."""
    if stage == "words":
        faults = "; ".join(f"{what} ({theirs})" for what, theirs in WORD_FAULTS.items())
        return f"faults of LLM2Vec's word tasks that are not repeated: {faults}; docs/migrate.md has them all"
    told = ", ".join(what for what, stages in SWITCHED_BACK.items() if stage in stages)
    return f"done otherwise than LLM2Vec: {told}; --as-llm2vec switches these back, docs/migrate.md says why"


def tell_silence(stage: str, keys: Collection[str]) -> str | None:
    """Say that a file of word tasks leaves open what trains, as those do whose script decided it."""
    if stage != "words" or not {"train_mode", "evaluate"}.isdisjoint(keys):
        return None
    return (
        "the file does not say which weights train (its script did, whatever the file is called): a probe on the "
        "frozen model is trained; --train_mode full trains every weight, --train_mode lora an adapter"
    )


SIGNS = frozenset(
    {*RENAMED, *IGNORED, "stop_after_n_steps", "mask_token_type", "dataset_file_path", "retroactive_labels"}
) - {
    "token",
    "resume_from_checkpoint",
}
"""Keys that give away a file of LLM2Vec or one of its descendants."""


def translate(
    raw: dict[str, Any], origin: str, ignored: dict[str, str] | None = None, own: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Give old keys their name of today.

    Parameters
    ----------
    raw
        Keys and values of a file, or of the flags.
    origin
        How to name a key in a message: ``"run.json: "`` or ``"--"``.
    ignored
        Keys of which this stage knows better, and why.
    own
        Keys of this stage, which mean here what they say.

    Returns
    -------
    tuple of dict and list of str
        The keys of today, and one line for each translation or dropped key.

    Raises
    ------
    UserError
        A key that cannot be honoured, or one given under both of its names.
    """
    keys: dict[str, Any] = {}
    notices = []
    raw = dict(raw)
    if file := raw.pop("dataset_file_path", None):
        named = raw.pop("dataset_name", None)
        raw["train_file"] = file
        notices.append(
            f"{origin}dataset_file_path is called train_file now; dataset_name = {named!r} says nothing more"
        )
    ignored = {**IGNORED, **(ignored or {})}
    _translate_words(raw, origin, notices)
    for name, value in raw.items():
        asks = value not in ASKS_NOTHING.get(name, (None, False, "", [], "False", "false"))
        old = name not in own and (name not in OF_WORDS or "evaluate" in own)
        if old and name in REFUSED:
            if asks:
                raise UserError(f"{origin}{name} = {value!r} cannot be honoured: {REFUSED[name]}")
            continue
        if name in SWITCHES and not asks:
            continue
        if old and name in ignored:
            if asks:
                notices.append(f"{origin}{name} is ignored: {ignored[name]}")
            continue
        today = ALIASES.get(name) or RENAMED.get(name, name) if old else name
        if today in keys or (today != name and today in raw):
            raise UserError(f"{origin}{name} and {origin}{today} are the same key; keep {today}")
        if old and name in RENAMED:
            notices.append(f"{origin}{name} is called {today} now")
        keys[today] = ",".join(map(str, value)) if today == "report_to" and isinstance(value, list) else value
    return keys, notices


def _translate_words(raw: dict[str, Any], origin: str, notices: list[str]) -> None:
    """Give the keys of LLM2Vec's word tasks whose values changed too their name of today, in place."""
    labels, encoder = raw.pop("retroactive_labels", None), raw.get("model_class") == "auto"
    if labels not in (None, "same_token", "next_token"):
        raise UserError(f"{origin}retroactive_labels = {labels!r} is none of same_token, next_token")
    if labels is not None or encoder:
        if "alignment" in raw:
            raise UserError(f"{origin}retroactive_labels and {origin}alignment are the same key; keep alignment")
        raw["alignment"] = "previous_token" if labels == "next_token" and not encoder else "same_token"
        shifted = "; an encoder is read at a word's own tokens, not one before" if encoder else ""
        notices.append(
            f"{origin}retroactive_labels = {labels or 'next_token, its default'} is called alignment = "
            f"{raw['alignment']} now{shifted}"
        )
    if "full_fine_tune" in raw:
        full = str(raw.pop("full_fine_tune")).lower() == "true"
        if raw.setdefault("train_mode", "full" if full else "probe") != "full" and full:
            raise UserError(
                f"{origin}full_fine_tune and train_mode = {raw['train_mode']!r} contradict; keep train_mode"
            )
        if full:
            rate = raw.get("learning_rate")
            kept = f"; learning_rate = {rate}, for all of them, is kept: 3e-5 is the default here" if rate else ""
            notices.append(f"{origin}full_fine_tune is called train_mode = full now: every weight trains{kept}")


def is_llm2vec(raw: dict[str, Any]) -> bool:
    """Say whether a file reads like one of LLM2Vec, its fork or Bg2Vec."""
    return not SIGNS.isdisjoint(raw)
