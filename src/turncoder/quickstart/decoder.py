"""A small Llama from scratch, in minutes, so that there is a decoder to turn where nothing can be downloaded.

Shapes: B batch, L length.
"""

import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from turncoder.data.vocabulary import train_tokenizer

__all__ = ["train_decoder"]

logger = logging.getLogger("turncoder")


def train_decoder(
    texts: list[str],
    held_out: list[str],
    folder: Path,
    *,
    vocab_size: int,
    width: int,
    layers: int,
    block_size: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[str, Any]:
    """Train a tokenizer and a causal Llama on ``texts`` and save both as an ordinary Hugging Face folder.

    Parameters
    ----------
    texts, held_out
        To train on, and to measure the loss on.
    folder
        Where the model goes, under a temporary name that is renamed at the end.
    vocab_size
        Tokens of the byte-level BPE.
    width, layers
        Of the model; heads are 32 wide.
    block_size
        Tokens in a row.
    steps, batch_size, learning_rate
        Of AdamW with a cosine schedule.
    seed
        Of the initialisation and the order.

    Returns
    -------
    dict
        ``parameters``, ``tokens`` trained on, ``tokens_per_second``, ``loss`` on held-out text in nats per token.
    """
    set_seed(seed)
    tokenizer = train_tokenizer(texts, vocab_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(partial / "trainer"),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.05},
            warmup_steps=max(1, steps // 15),
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=max(1, steps // 10),
            save_strategy="no",
            seed=seed,
            report_to=[],
            disable_tqdm=not sys.stderr.isatty(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=_cut(tokenizer, texts, block_size),
        eval_dataset=_cut(tokenizer, held_out, block_size)[:256],
        callbacks=[LossLines()],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    loss = trainer.evaluate()["eval_loss"]
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(partial / "trainer", ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    tokens = steps * batch_size * block_size
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "loss": round(loss, 4),
    }


class LossLines(TrainerCallback):
    """One plain line now and then where there is no terminal for a progress bar."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say where the training loss is."""
        if args.disable_tqdm and logs and "loss" in logs:
            logger.info("step %d/%d  loss %.3f", state.global_step, state.max_steps, float(logs["loss"]))


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], block_size: int) -> list[dict[str, torch.Tensor]]:
    """Put texts end to end, each with its first token, and cut rows of ``block_size``; the remainder is dropped."""
    token_ids = torch.tensor([token for ids in tokenizer(texts)["input_ids"] for token in ids])
    rows_BL = token_ids[: len(token_ids) // block_size * block_size].view(-1, block_size)
    return [{"input_ids": row_L, "labels": row_L} for row_L in rows_BL]
