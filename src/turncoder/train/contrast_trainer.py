"""sentence-transformers' trainer, with batches drawn by us: what a batch is made of, and what is measured meanwhile.

In the names of tensors: B rows, L positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.utils import load_peft_weights
from safetensors.torch import load_model, save_model
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.evaluation import SentenceEvaluator
from sentence_transformers.util import batch_to_device
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from turncoder.data.batching import SetBatches
from turncoder.data.pairs import Rows
from turncoder.encode.texts import encode_texts
from turncoder.evaluate.sentences import (
    Sts,
    encode_columns,
    measure_alignment,
    measure_uniformity,
    score_columns,
    score_sts,
)
from turncoder.objectives.contrast import ByLengthRankingLoss, embed_by_length
from turncoder.train.course import Course
from turncoder.train.teacher import Lessons

__all__ = ["Collator", "ContrastTrainer", "HeldOut", "SetRows"]

WEIGHTS_FILE = "model.safetensors"
VIEW_SEED = 20240409  # of the views that held-out texts are measured on


class SetRows(Dataset[dict[str, Any]]):
    """The rows of all sets, numbered through; each knows its set."""

    column_names: tuple[str, ...] = ()
    _sentence_transformers_preprocessed = True  # nothing is left to the trainer to add

    def __init__(self, sets: Sequence[Rows]) -> None:
        self.sets = sets
        self.starts = np.cumsum([0, *(len(rows) for rows in sets)])

    def __len__(self) -> int:
        """Count the rows."""
        return int(self.starts[-1])

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Give the texts of a row, ``set`` and ``row``."""
        number = int(np.searchsorted(self.starts, item, side="right")) - 1
        row = int(item - self.starts[number])
        return {**self.sets[number].data[row], "set": number, "row": row}


class Collator:
    """Tokenises the rows of a batch, and puts them in the order of their length.

    The loss does not depend on the order, and a part of a batch holds hardly any padding then.

    Parameters
    ----------
    encoder
        Its tokenizer and prompts are used.
    sets
        For their prompts.
    lessons
        What a teacher makes of the rows, to be their label; None without a teacher.
    """

    valid_label_columns: tuple[str, ...] = ()

    def __init__(self, encoder: SentenceTransformer, sets: Sequence[Rows], lessons: Lessons | None = None) -> None:
        self.encoder = encoder
        self.lessons = lessons
        self.prompts = [rows.prompts for rows in sets]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Make the batch: ``COLUMN_input_ids``, ``COLUMN_attention_mask`` [B, L] and so on."""
        prompts = self.prompts[rows[0]["set"]]
        columns = {
            name: self.encoder.preprocess([row[name] for row in rows], prompt=prompts.get(name))
            for name in rows[0]
            if name not in ("set", "row")
        }
        length_B = torch.stack([features["attention_mask"].sum(1) for features in columns.values()]).sum(0)
        order_B = length_B.argsort(descending=True, stable=True)
        if "text" in columns:  # two views of the same
            columns = {"anchor": columns["text"], "positive": columns["text"]}
        batch = {
            f"{column}_{name}": value[order_B] if isinstance(value, torch.Tensor) and len(value) == len(rows) else value
            for column, features in columns.items()
            for name, value in features.items()
        }
        if self.lessons is not None:
            batch["label"] = self.lessons(rows[0]["set"], [row["row"] for row in rows])[order_B].unsqueeze(-1)
        return batch


class ContrastTrainer(SentenceTransformerTrainer):
    """sentence-transformers' trainer on batches of `SetBatches`, whose checkpoints hold what trains.

    Parameters
    ----------
    course
        Of the training; None for steps outside of a run.
    trained
        The backbone of ``model``, or the adapter around it: what checkpoints hold.
    batches
        The order of the rows.
    **kwargs
        As for `SentenceTransformerTrainer`.
    """

    def __init__(
        self, *, course: Course | None = None, trained: torch.nn.Module, batches: SetBatches, **kwargs: Any
    ) -> None:
        super().__init__(callbacks=course.callbacks if course else None, **kwargs)
        self.course = course
        self.trained = trained
        self.batches = batches
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)  # disable_tqdm = false, in LLM2Vec's files

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave sentence-transformers' own card out: the artifact has ours."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any) -> Any:
        """Compute the loss, and count the tokens."""
        for name, value in inputs.items():
            if name.endswith("attention_mask") and self.course is not None:
                self.course.record.count_tokens(value)
        return super().compute_loss(model, inputs, *arguments, **named)

    def get_train_dataloader(self) -> DataLoader:
        """Draw the batches in their order, shared out to the processes one by one."""
        self.accelerator.even_batches = False
        loader = DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter."""
        assert isinstance(self.trained, PeftModel)
        self.trained.save_pretrained(str(folder), save_embedding_layers=False)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.trained, PeftModel):
            self.save_adapter(folder)
        else:
            save_model(self.trained, str(folder / WEIGHTS_FILE))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        if isinstance(self.trained, PeftModel):
            set_peft_model_state_dict(self.trained, load_peft_weights(checkpoint_path, device="cpu"))
        else:
            load_model(self.trained, str(Path(checkpoint_path) / WEIGHTS_FILE))


class HeldOut(SentenceEvaluator):
    """What is measured on held-out rows: the loss, and how well vectors do.

    For texts: alignment of two views under dropout and uniformity (Wang and Isola 2020, arXiv 2005.10242). For pairs:
    how anchors find their positives among all positives and negatives, and how often a positive is nearer than the
    first negative.

    Parameters
    ----------
    sets
        Held-out rows of each set; may be empty.
    sts
        Scored pairs, or None.
    loss
        For its temperature and directions.
    batch_size
        Rows that are contrasted with one another.
    prompt
        Stands before the sentences of scored pairs.
    """

    def __init__(
        self,
        sets: Sequence[Rows],
        sts: Sts | None,
        loss: ByLengthRankingLoss,
        batch_size: int,
        prompt: str | None = None,
    ) -> None:
        super().__init__()
        self.sets = [rows for rows in sets if len(rows) > 1]
        self.sts = sts
        self.loss = loss
        self.batch_size = batch_size
        self.prompt = prompt

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, *arguments: Any, **named: Any
    ) -> dict[str, float]:
        """Give ``loss``, ``alignment`` and so on."""
        if output_path and not any(Path(output_path).iterdir()):
            Path(output_path).rmdir()  # the trainer makes it for evaluators that write
        training = model.training
        scores = [
            self._score_texts(model, rows) if "text" in rows.data.column_names else self._score_pairs(model, rows)
            for rows in self.sets
        ]
        model.eval()
        result = {
            name: float(np.mean([score[name] for score in scores if name in score]))
            for name in dict.fromkeys(name for score in scores for name in score)
        }
        if self.sts is not None:
            result["sts_spearman"] = score_sts(model, self.sts, prompt=self.prompt)
        model.train(training)
        return result

    def _average_loss(self, *columns: np.ndarray) -> float:
        """Give the mean loss of rows [N, D] that are contrasted batch by batch."""
        losses, sizes = [], []
        for start in range(0, len(columns[0]), self.batch_size):
            parts = [torch.from_numpy(vectors_ND[start : start + self.batch_size]) for vectors_ND in columns]
            if len(parts[0]) > 1:
                losses.append(float(self.loss.compute_loss_from_embeddings(parts, None)))
                sizes.append(len(parts[0]))
        return float(np.average(losses, weights=sizes))

    @torch.no_grad()
    def _see_twice(self, model: SentenceTransformer, rows: Rows) -> list[np.ndarray]:
        """Give the two views [N, D] of every text under dropout."""
        views: list[list[np.ndarray]] = [[], []]
        model.train()
        with torch.random.fork_rng():
            torch.manual_seed(VIEW_SEED)
            for start in range(0, len(rows), self.batch_size):
                texts = rows.data[start : start + self.batch_size]["text"]
                features = batch_to_device(model.preprocess(texts, prompt=rows.prompts.get("text")), model.device)
                for view in views:
                    vectors_BD = embed_by_length(model, dict(features), self.loss.batch_tokens)
                    view.append(vectors_BD.float().cpu().numpy())
        return [np.concatenate(view) for view in views]

    def _score_texts(self, model: SentenceTransformer, rows: Rows) -> dict[str, float]:
        first_ND, second_ND = self._see_twice(model, rows)
        model.eval()
        vectors_ND = encode_texts(model, rows.data["text"][:], prompt=rows.prompts.get("text"))
        return {
            "loss": self._average_loss(first_ND, second_ND),
            "alignment": measure_alignment(first_ND, second_ND),
            "uniformity": measure_uniformity(vectors_ND),
        }

    def _score_pairs(self, model: SentenceTransformer, rows: Rows) -> dict[str, float]:
        model.eval()
        vectors = encode_columns(model, rows.data[:], rows.prompts)
        return {"loss": self._average_loss(*vectors.values()), **score_columns(vectors)}
