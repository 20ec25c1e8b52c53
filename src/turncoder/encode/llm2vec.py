"""LLM2Vec's reading of a text: instruction and BOS are attended to, and what is pooled is the text alone.

LLM2Vec tokenises the text a second time, without the instruction, and counts that many positions from the end, which
can be off by a token. Here a token belongs to the text when its character span reaches into it. Everything else is as
in llm2vec 0.2.3: chat templates by the model's name, an end of text for ``eos_token``, texts cut to ``doc_max_length``
tokens word by word.

In the names of tensors: B rows of a batch, L positions, D width.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from sentence_transformers.models import Transformer

from turncoder.prompts import llm2vec_template

__all__ = ["LLM2VecTransformer"]

BY_MASK = ("mean", "weighted_mean")


class LLM2VecTransformer(Transformer):
    """A sentence-transformers module that hands pooling the tokens of the text alone.

    Parameters
    ----------
    *arguments, **named
        Of sentence-transformers' ``Transformer``.
    pooling
        LLM2Vec's name of it: mean and weighted_mean pool the text; the others take one position of the whole row.
    doc_max_length
        Most tokens of a text, without instruction and special tokens; longer ones lose words from their end, and
        their white space.
    skip_instruction
        Off: everything is pooled.
    template_name
        The name by which LLM2Vec finds the chat template.
    """

    config_keys: ClassVar[list[str]] = [
        *Transformer.config_keys,
        "pooling",
        "doc_max_length",
        "skip_instruction",
        "template_name",
    ]

    def __init__(
        self,
        *arguments: Any,
        pooling: str = "mean",
        doc_max_length: int = 400,
        skip_instruction: bool = True,
        template_name: str = "",
        **named: Any,
    ) -> None:
        super().__init__(*arguments, **named)
        self.pooling = pooling
        self.doc_max_length = doc_max_length
        self.skip_instruction = skip_instruction
        self.template_name = template_name
        self.template = llm2vec_template(template_name, self.config.model_type, pooling)

    def write(self, text: str, prompt: str | None = None) -> tuple[str, int]:
        """Return what is tokenised, and where in it the text begins, in characters."""
        head = f"{prompt.strip()} " if prompt else ""
        text = self._cut(text)
        if self.template.strips:
            head, text = head.lstrip(), text.rstrip()
        head = self.template.before + head
        return head + text + self.template.after, len(head)

    def cuts(self, text: str) -> bool:
        """Say whether a text is longer than ``doc_max_length``."""
        return self._count(text) > self.doc_max_length

    def _cut(self, text: str) -> str:
        """Drop words until the text has at most ``doc_max_length`` tokens, as LLM2Vec does: it counts to the limit."""
        length = self._count(text)
        while length > self.doc_max_length:
            words = text.split()
            text = " ".join(words[: int(len(words) * self.doc_max_length / length)])
            length = self._count(text)
        return text

    def _count(self, text: str) -> int:
        if len(text.encode("utf-8", "surrogatepass")) < self.doc_max_length:  # no token is shorter than a byte
            return 0
        ids = self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=self.max_seq_length)
        return len(ids["input_ids"])

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenise texts, or [instruction, text] pairs; the prompt is the instruction of those that bring none."""
        pairs = [(prompt, entry) if isinstance(entry, str) else (entry[0] or prompt, entry[1]) for entry in inputs]
        written = [self.write(text, instruction) for instruction, text in pairs]
        features = self.tokenizer(
            [whole for whole, _ in written],
            padding=True,
            truncation=True,
            max_length=self.max_seq_length,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        starts_B1 = torch.tensor([start for _, start in written])[:, None]
        ends_BL = features.pop("offset_mapping")[..., 1]  # 0 for special tokens
        mask_BL = features["attention_mask"]
        if self.skip_instruction and self.pooling in BY_MASK:
            pooled_BL = (ends_BL > starts_B1).long() * mask_BL
            mask_BL = torch.where(pooled_BL.any(-1, keepdim=True), pooled_BL, mask_BL)  # no text: the whole row
        return {**features, "pooled_BL": mask_BL, "modality": "text"}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Run the model on the whole row; what follows sees the mask of the text."""
        rest = {name: value for name, value in features.items() if name != "pooled_BL"}
        rest, pooled_BL = super().forward(rest, **kwargs), features["pooled_BL"]
        if self.pooling == "weighted_mean":  # the first token pooled weighs 1; before 6.2 weights count from column 0
            columns_L = torch.arange(pooled_BL.shape[1], device=pooled_BL.device)
            from_BL = (columns_L + pooled_BL.argmax(-1, keepdim=True)) % pooled_BL.shape[1]
            hidden_BLD, pooled_BL = rest["token_embeddings"], pooled_BL.gather(1, from_BL)
            rest["token_embeddings"] = hidden_BLD.gather(1, from_BL[..., None].expand_as(hidden_BLD))
        return {**rest, "attention_mask": pooled_BL}
