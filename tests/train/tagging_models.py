"""Tiny models with tokenizers of their own, and parts of real treebanks, for runs of ``words``."""

from collections import Counter
from pathlib import Path

import torch
from launching import write_words
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from turncoder.model.twin import redraw_weights

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EWT = "data/ud_english_ewt/en_ewt-ud-{}.conllu"
NER = {
    "train": "data/uner_english_ewt/en_ewt-ud-train.prerelease.iob2",
    "dev": "data/uner_english_ewt/en_ewt-ud-dev.iob2",
    "test": "data/uner_english_ewt/en_ewt-ud-test.iob2",
}
FAST = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "logging_steps": 1}


def cut(source: Path, target: Path, sentences: int, skip: int = 0) -> Path:
    """Write some sentences of a file of blocks."""
    blocks = source.read_text(encoding="utf8").split("\n\n")[skip : skip + sentences]
    target.write_text("".join(block + "\n\n" for block in blocks), encoding="utf8")
    return target


def write_columns(target: Path, sentences: list[list[tuple[str, ...]]]) -> Path:
    """Write sentences in columns."""
    text = "".join("".join("\t".join(word) + "\n" for word in sentence) + "\n" for sentence in sentences)
    target.write_text(text, encoding="utf8")
    return target


def make_wordpiece(texts: list[str]) -> PreTrainedTokenizerFast:
    """Make a tokenizer like BERT's, with [CLS] and [SEP] around a text: frequent words, and letters for the others."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Counter(word for text in texts for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text))
    letters = sorted({letter for word in words for letter in word})
    often = [word for word, count in sorted(words.items(), key=lambda one: (-one[1], one[0])) if len(word) > 1]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *often[:200]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, special, strict=True)))


def make_encoder(kind: str, folder: Path, texts: list[str]) -> Path:
    """Write a random BERT, DeBERTa or ModernBERT."""
    torch.manual_seed(0)
    tokenizer = make_wordpiece(texts)
    size = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    configs: dict[str, PreTrainedConfig] = {
        "bert": BertConfig(**size, **still),
        "deberta": DebertaV2Config(
            **size, **still, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"],
            type_vocab_size=0,
        ),
        "modernbert": ModernBertConfig(
            **size, global_attn_every_n_layers=2, local_attention=8, cls_token_id=2, sep_token_id=3, bos_token_id=2,
            eos_token_id=3,
        ),
    }  # fmt: skip
    return save(AutoModel.from_config(configs[kind]), tokenizer, folder)


def make_decoder(folder: Path, stories: Path, **changes: int) -> Path:
    """Write a random Llama with the tokenizer of the stories' model."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(stories)
    size = {**SIZES, "vocab_size": 512, "max_position_embeddings": 256, "num_key_value_heads": 2}
    return save(AutoModel.from_config(LlamaConfig(**{**size, **changes})), tokenizer, folder)


def save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    redraw_weights(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(model: Path, train: Path, output: Path, **changes: object) -> list[str]:
    """A command line of ``words``."""
    flags = {**FAST, "model_name_or_path": model, "train_file": train, "output_dir": output, **changes}
    return write_words("words", {name: value for name, value in flags.items() if value is not None})
