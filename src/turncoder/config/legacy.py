"""What the keys of LLM2Vec, its word-level fork and Bg2Vec mean here, and what is done otherwise: tables only.

`translate` walks the tables. ``docs/migrate.md`` shows them in prose; a test holds the two together.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from turncoder.errors import UserError

__all__ = [
    "ALIASES",
    "DIFFERENCES",
    "IGNORED",
    "OLD_NAMES",
    "REFUSED",
    "RENAMED",
    "Difference",
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


@dataclass(frozen=True)
class Difference:
    """One thing that is done otherwise than LLM2Vec does it.

    Attributes
    ----------
    what
        The subject, a few words: its short form in the notice.
    theirs, ours
        What each does.
    why
        The reason, one sentence.
    back
        How to have LLM2Vec's way: ``--as-llm2vec`` (and a key, if one does it alone), or why there is no way back.
    stages
        The commands that it is about.
    """

    what: str
    theirs: str
    ours: str
    why: str
    back: str
    stages: tuple[str, ...] = ("mntp",)


ALL = ("mntp", "simcse", "supervised")
CONTRAST = ("simcse", "supervised")
WORDS = ("words",)
DIFFERENCES = (
    Difference(
        "documents isolated",
        "Blocks run across documents and every token sees the whole block.",
        "Documents in one block do not see each other.",
        "What a token's vector is must not depend on which text was packed beside it.",
        "`--as-llm2vec`, or `isolate_documents = false`",
    ),
    Difference(
        "head frozen",
        "The vocabulary head is trained in full, over all positions, and thrown away.",
        "The head stays as it is and sees only the positions that are predicted.",
        "An adapter tuned against a head that nobody keeps has a loss that nobody can reproduce; "
        "and the head is most of the memory.",
        "`--as-llm2vec`, or `train_head = true`",
    ),
    Difference(
        "schedule laid out for the steps that are run",
        "The learning rate decays over `num_train_epochs` and the run is cut at `stop_after_n_steps`.",
        "The schedule ends where the run ends.",
        "Cut at 1,000 of 4,689 steps, the learning rate has hardly come down.",
        "`--as-llm2vec`",
        stages=ALL,
    ),
    Difference(
        "held-out documents by hash",
        "Without a validation set the first 5 % of the corpus are held out.",
        "Documents are held out by a hash of their text.",
        "The head of a corpus is seldom like the rest of it; equal documents fall on the same side.",
        "`--as-llm2vec`",
    ),
    Difference(
        "empty lines dropped",
        "An empty line becomes a document of special tokens only.",
        "Empty documents are dropped and counted.",
        "A fifth of WikiText's lines are empty: nothing is learnt from them.",
        "`--as-llm2vec`",
    ),
    Difference(
        "no remainder lost",
        "The rest of every thousand lines that does not fill a block is dropped.",
        "Only the very last rest is dropped, and counted.",
        "Text is not thrown away by how it was batched.",
        "`--as-llm2vec`",
    ),
    Difference(
        "metric aligned",
        "Bg2Vec compares the prediction for the next token with this one; LLM2Vec corrected it.",
        "Loss and accuracy use the same pairs: the state at t-1, the token at t.",
        "Off by one, accuracy does not rise while the model learns.",
        "no way back: the number was wrong",
    ),
    Difference(
        "fixed evaluation masks",
        "Masks are drawn anew at every evaluation.",
        "Every evaluation masks the same tokens.",
        "Losses of two evaluations can be compared.",
        "no way back: only the noise differs",
    ),
    Difference(
        "rows at step 0",
        "The first evaluation comes after training began.",
        "The causal and the untrained bidirectional model are evaluated first.",
        "What training gave is the difference to them.",
        "`--as-llm2vec`, or `evaluate_step_zero = false`",
    ),
    Difference(
        "adapters in float32",
        "The precision of adapters follows the model's, or the version of peft.",
        "What trains is float32, computed under autocast; frozen weights may be bfloat16.",
        "A step of 5e-5 is lost in bfloat16's eight bits.",
        "no way back: it would only lose precision",
        stages=ALL,
    ),
    Difference(
        "tokenizer untouched",
        "The mask token is written into the tokenizer that is saved.",
        "The mask token is an id in the run's record; the tokenizer is saved byte for byte.",
        'After LLM2Vec\'s change "snake_case" is tokenised otherwise and loses its underscore.',
        "no way back: it damages the tokenizer",
    ),
    Difference(
        "underscores can be masked",
        "The mask token `_` counts as special: real underscores are never predicted.",
        "An underscore in the text is a token like any other.",
        "Masking with a token does not make it special.",
        "`--as-llm2vec`",
    ),
    Difference(
        "samples drawn from the whole corpus",
        "`max_train_samples` and `max_eval_samples` take the first blocks.",
        "They are drawn by `seed`.",
        "The head of a corpus is seldom like the rest of it.",
        "`--as-llm2vec`",
    ),
    Difference(
        "nothing reported",
        "Trackers that are installed are used (`report_to = all`).",
        "Nothing leaves the machine unless `report_to` says so.",
        "Nothing phones home.",
        "`report_to`",
        stages=ALL,
    ),
    Difference(
        "training by default",
        "`do_train` and `do_eval` are off unless set.",
        "Both are on unless switched off.",
        "A training command trains.",
        "`do_train`, `do_eval`",
        stages=ALL,
    ),
    Difference(
        "the text alone is pooled",
        "SimCSE's training pools over BOS and all padding (the mask of its text is empty), encoding over the text.",
        "One pooling, over the attention mask, in training and encoding alike.",
        "The same text alone and in a batch had a cosine of 0.35 in training.",
        "no way back: the vectors that were trained are not those that are used",
        stages=CONTRAST,
    ),
    Difference(
        "gradients shared",
        "With several devices each trains a copy of its own, and the first one's is saved.",
        "Gradients are averaged, negatives gathered: as if one device had the whole batch.",
        "Several devices that do not share gradients are one device.",
        "no way back: it was a fault",
        stages=CONTRAST,
    ),
    Difference(
        "equal texts once",
        "A text that occurs twice is its own negative, when both fall into one batch.",
        "SimCSE drops repeated texts; supervised batches hold no text twice.",
        "A text cannot be told apart from itself.",
        "`--as-llm2vec`",
        stages=CONTRAST,
    ),
    Difference(
        "texts held out",
        "Contrastive stages train on everything and measure nothing.",
        "`validation_split_percentage` of the rows are held out and evaluated on.",
        "Whether training helps is to be seen while it runs.",
        "`--as-llm2vec`",
        stages=CONTRAST,
    ),
    Difference(
        "prompts kept apart",
        'An instruction ends in "; " in training and in ": " in evaluation.',
        "A prompt ends in a newline, is the same string everywhere, and is stored in the model.",
        "A model is asked what it was trained to answer.",
        "no way back: prompts are strings, so `prompts_file` takes any that keep apart from the text",
        stages=("supervised",),
    ),
    Difference(
        "symmetric sets prompted on both sides",
        "Duplicate questions and similar texts get an instruction on one side only.",
        "Both sides get it, as the paper says.",
        "Which of two duplicates is the query is chance.",
        "no way back: `prompts_file` can leave one side without",
        stages=("supervised",),
    ),
    Difference(
        "batches of one set, accumulation included",
        "A batch that is accumulated over several steps may mix sets.",
        "All rows of an optimizer step are of one set.",
        "Across sets negatives are too easy.",
        "no way back: only the order differs",
        stages=("supervised",),
    ),
    Difference(
        "frozen means frozen",
        'Runs called "frozen" train the whole backbone and save the head alone.',
        "`probe` computes the frozen states once and trains heads on them; `lora` and `full` say what they train.",
        "A head tested on another backbone than it was trained with measures neither.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "encoders label their own tokens",
        "Files of encoders inherit `retroactive_labels = next_token`: a baseline that labels the word after.",
        "With `model_class = auto` a word is read at its own tokens.",
        "That shift belongs to decoders trained by MNTP.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "every word counts",
        "Words beyond the limit, and the first one where there is no BOS, drop out of the score.",
        "Long sentences go through in windows, a BOS is supplied; every word is scored once.",
        "Scores over different words cannot be compared.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "words by their characters",
        "Words are tokenised one by one, which byte-level tokenizers never saw in training.",
        "The sentence is tokenised as it stands; a word has the tokens that cover its characters.",
        "A model is to read what it was trained to read.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "one evaluator",
        'Four metrics across the arms; "precision" is token accuracy; dropout is on at test time.',
        "Token accuracy, F1 over classes and chunks as conlleval counts them, for every arm, without dropout.",
        "Numbers under one name are to mean one thing.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "UPOS from the data",
        "UPOS is derived from XPOS by hand, which is wrong for 10.6 % of the words of UD English-EWT.",
        "`task = upos` trains on the column itself.",
        "The file has it.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "labels from the data",
        "Label tables are written into the code; a label beyond them stops the run.",
        "Labels are those of the training file; others count as wrong and are reported.",
        "Any data set is to work.",
        "no way back: it was a fault",
        stages=WORDS,
    ),
    Difference(
        "several seeds",
        "One seed.",
        "A probe trains five and says how far they lie apart; `seeds` sets them anywhere.",
        "A difference smaller than that between seeds is none.",
        "`seeds = [42]`",
        stages=WORDS,
    ),
)
"""Every deliberate difference to LLM2Vec's MNTP; one table for the docs, one notice for the user of an old file."""


def tell_differences(stage: str) -> str:
    """Say in one line what a stage does otherwise and what ``--as-llm2vec`` switches back."""
    if stage in WORDS:
        faults = "; ".join(f"{row.what} ({row.theirs.rstrip('.')})" for row in DIFFERENCES if stage in row.stages)
        return f"faults of LLM2Vec's word tasks that are not repeated: {faults}; docs/migrate.md has them all"
    told = [row.what for row in DIFFERENCES if stage in row.stages and "--as-llm2vec" in row.back]
    return f"done otherwise than LLM2Vec: {', '.join(told)}; --as-llm2vec switches these back, docs/migrate.md says why"


def tell_silence(stage: str, keys: Collection[str]) -> str | None:
    """Say that a file of word tasks leaves open what trains, as those do whose script decided it."""
    if stage not in WORDS or not {"train_mode", "evaluate"}.isdisjoint(keys):
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
        old = name not in own
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
