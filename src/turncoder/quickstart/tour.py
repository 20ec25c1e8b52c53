"""From nothing to a sentence encoder in minutes: gather text, train a decoder, and turn it.

Each part keeps its own folder under the output folder and is not repeated when that is there.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder.disk import write_atomically
from turncoder.errors import UserError
from turncoder.quickstart.casing import COLUMNS, write_tagged
from turncoder.quickstart.prose import Prose, gather_prose, is_held_out, source_roots

if TYPE_CHECKING:
    from turncoder.config.pretraining import PretrainConfig
    from turncoder.config.stages import TurnConfig
    from turncoder.data.corpus import Corpus

__all__ = ["Sizes", "configure", "configure_decoder", "gather", "run", "train_base"]

logger = logging.getLogger("turncoder")


@dataclass(frozen=True)
class Sizes:
    """How much of everything; the defaults take some five minutes on two cores.

    Attributes
    ----------
    words
        Of training text.
    vocab_size, width, layers, decoder_steps, decoder_learning_rate
        Of the decoder that is trained when no model is given.
    block_size, batch_size
        Of every training, in tokens and rows.
    steps, learning_rate, mlm_probability, train_mode, lora_r
        Of MNTP, and of the control but for the masks.
    simcse_steps, simcse_batch_size, simcse_learning_rate
        Of SimCSE.
    eval_blocks
        Held-out rows that loss and accuracy are measured on.
    pairs
        Documents that retrieval is measured on, at most.
    passages
        Of labelled words that probes are trained on.
    """

    words: int = 800_000
    vocab_size: int = 4096
    width: int = 128
    layers: int = 4
    decoder_steps: int = 1400
    decoder_learning_rate: float = 3e-3
    block_size: int = 128
    batch_size: int = 8
    steps: int = 600
    learning_rate: float = 5e-3
    mlm_probability: float = 0.2
    train_mode: str = "lora"
    lora_r: int = 16
    simcse_steps: int = 60
    simcse_batch_size: int = 64
    simcse_learning_rate: float = 3e-4
    eval_blocks: int = 128
    pairs: int = 1000
    passages: int = 1500


# A model that somebody trained in earnest bears a tenth of the small one's learning rate, and takes longer a step.
GIVEN_MODEL = Sizes(words=200_000, steps=200, learning_rate=5e-4, simcse_steps=60)


def run(
    *,
    model: str | None = None,
    text: str | Path | None = None,
    output: str | Path = Path("quickstart"),
    seed: int = 42,
    sizes: Sizes | None = None,
) -> Path:
    """Do the whole path and print a table of what each step gave; the same call again reuses the parts that are done.

    Parameters
    ----------
    model
        A decoder to turn, as a folder or hub id; without it a small Llama is trained first.
    text
        Text to train and to score on, in any shape that training takes; without it docstrings are gathered.
    output
        Folder for everything.
    seed
        Of every random choice.
    sizes
        How much of everything.

    Returns
    -------
    Path
        The folder that ``SentenceTransformer`` loads; without ``model/``, the run that `load_encoder` opens.

    Raises
    ------
    UserError
        The input is wrong, too small, or ``output`` holds something else.
    """
    from transformers.utils.logging import disable_progress_bar

    from turncoder.turn.ladder import turn

    sizes, output = sizes or (GIVEN_MODEL if model else Sizes()), Path(output)
    _check_input(model, text, sizes)
    _open(output, {"model": model, "text": str(text) if text else None, "seed": seed, "sizes": asdict(sizes)})
    disable_progress_bar()  # of loading weights; training keeps its own
    logger.info("text from %s", text or "the docstrings of this Python")
    gather(text, output, sizes)
    logger.info("the decoder: %s", model or "a small Llama, pretrained from scratch without a vocabulary head")
    base = model or train_base(output, sizes, seed)
    folder = turn(configure(base, output, sizes, seed))
    _tell_more(base, text, output)
    return next(place for name in ("model", "simcse") if (place := folder / name).exists())


def _tell_more(base: str, text: str | Path | None, output: Path) -> None:
    from rich.console import Console

    from turncoder.turn.ladder import tell_opening

    own = "" if text else "  turncoder turn MODEL --text FILE --output FOLDER   # the same for your own\n"
    Console().print(
        "\ncase, punct: how a word is written and which mark follows it, told from words in\n"
        "lower case without marks. Raw text gives these labels for free.\n"
        f"\nWith your own model (a folder or hub id) and text:\n{own}"
        "  turncoder check MODEL\n"
        "  turncoder report RUN\n\n"
        f"Decoder    {base}\n"
        f"{_tell_decoder(output / 'decoder')}"
        f"Text       {output / 'text'}\n"
        f"Runs       {output / 'turn'}\n"
        f"{tell_opening(output / 'turn')}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _tell_decoder(folder: Path) -> str:
    """Say what the pretraining of the decoder gave, if there was one."""
    if not folder.exists():
        return ""
    from turncoder.report.summary import read_run

    first, *_, last = (row["bits_per_byte"] for row in read_run(folder)["rows"])
    return (
        f"           pretrained without a vocabulary head: {last:.2f} bits per byte of held-out text,\n"
        f"           {first:.2f} by how frequent tokens are\n"
    )


def _check_input(model: str | None, text: str | Path | None, sizes: Sizes) -> None:
    """Refuse what cannot be opened, or measured on, before anything is written or trained."""
    if text:
        from turncoder.turn.rungs import open_trial

        prose = _sample(text, sizes.words)
        if not prose.train or not prose.held_out:
            raise UserError(f"--text {text}: too few texts to hold some out; give at least a few dozen, one per line")
        open_trial(prose.held_out, None, [], sizes.pairs, "give more or longer texts")
    if model:
        from turncoder.model.backbone import load_model_config

        load_model_config(model)


def _open_text(text: str | Path) -> "Corpus":
    from turncoder.data.corpus import open_corpus
    from turncoder.data.files import names_file

    where: dict[str, Any] = {"file" if names_file(str(text)) else "dataset_name": str(text)}
    corpus = open_corpus(**where, key="--text")
    if corpus.tokenised:
        raise UserError(f"--text {text} holds token ids; quickstart needs the texts themselves")
    return corpus


def _open(output: Path, asked: dict[str, Any]) -> None:
    """Create the output folder, or make sure that it is the same tour that is continued."""
    from turncoder.data.files import refuse_file

    refuse_file(output)
    record = output / "quickstart.json"
    if record.exists():
        try:
            before = dict(json.loads(record.read_text(encoding="utf8")))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--output {output}: quickstart.json cannot be read ({error}): name another folder, or empty it"
            ) from None
        changed = [f"{key} {before.get(key)} -> {value}" for key, value in asked.items() if before.get(key) != value]
        if changed:
            raise UserError(
                f"--output {output} holds a quickstart with other settings ({'; '.join(changed)}): name another"
            )
    elif output.exists() and any(output.iterdir()):
        raise UserError(f"--output {output} exists and is no quickstart: name another folder, or empty it")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps(asked, indent=1) + "\n")


def gather(text: str | Path | None, output: Path, sizes: Sizes) -> None:
    """Gather texts to train on and texts held out into ``output/text``, with words of both; unless they are there."""
    train, held_out = output / "text" / "train.jsonl", output / "text" / "held_out.jsonl"
    if not held_out.exists():  # written last
        prose = _sample(text, sizes.words) if text else gather_prose(source_roots(), words=sizes.words)
        train.parent.mkdir(exist_ok=True)
        for path, texts in ((train, prose.train), (held_out, prose.held_out)):
            write_atomically(path, "".join(json.dumps({"text": line}) + "\n" for line in texts))
    texts, others = ([json.loads(line)["text"] for line in path.open(encoding="utf8")] for path in (train, held_out))
    words = sum(len(line.split()) for line in texts)
    logger.info("      %s texts, %s words; %s texts held out", f"{len(texts):,}", f"{words:,}", f"{len(others):,}")
    write_tagged(Prose(texts, others, words), output / "text" / "words", sizes.passages)


def _sample(text: str | Path, words: int) -> Prose:
    """Take the first ``words`` words of the user's texts; a tenth, chosen by content, is held out on top."""
    prose = Prose()
    for line in dict.fromkeys(_take(_open_text(text), words)):
        (prose.held_out if is_held_out(line) else prose.train).append(line)
    return prose


def _take(texts: Iterable[str], words: int) -> Iterator[str]:
    for text in texts:
        if text.strip():
            yield text.strip()
            words -= len(text.split())
        if words <= 0:
            return


def train_base(output: Path, sizes: Sizes, seed: int) -> str:
    """Train the small decoder into ``output/decoder``, unless it is there, and return the run."""
    import turncoder

    return str(turncoder.train(configure_decoder(output, sizes, seed)))


def configure_decoder(output: Path, sizes: Sizes, seed: int) -> "PretrainConfig":
    """Say how the decoder is trained: on ``output/text``, into ``output/decoder``."""
    from turncoder.config.pretraining import PretrainConfig

    return PretrainConfig(
        kind="clm",
        objective="cwt",
        config_name="llama",
        config_overrides={
            "hidden_size": sizes.width,
            "intermediate_size": sizes.width * 8 // 3 // 32 * 32,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.width // 32,
            "num_key_value_heads": sizes.width // 32,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        },
        train_tokenizer="bpe",
        vocab_size=sizes.vocab_size,
        train_file=str(output / "text" / "train.jsonl"),
        validation_file=str(output / "text" / "held_out.jsonl"),
        max_eval_samples=256,
        max_seq_length=sizes.block_size,
        max_steps=sizes.decoder_steps,
        per_device_train_batch_size=sizes.batch_size,
        learning_rate=sizes.decoder_learning_rate,
        warmup_steps=0.07,
        training={"adam_beta2": 0.95},
        logging_steps=0.1,
        save_strategy="no",
        seed=seed,
        output_dir=str(output / "decoder"),
    )


def configure(base: str, output: Path, sizes: Sizes, seed: int) -> "TurnConfig":
    """Say how the decoder is turned: into ``output/turn``."""
    from turncoder.config.stages import TurnConfig

    return TurnConfig(
        model_name_or_path=base,
        text=str(output / "text" / "train.jsonl"),
        validation_text=str(output / "text" / "held_out.jsonl"),
        output_dir=str(output / "turn"),
        max_seq_length=sizes.block_size,
        steps_mntp=sizes.steps,
        steps_simcse=sizes.simcse_steps,
        eval_documents=sizes.pairs,
        words=str(output / "text" / "words"),
        words_task=COLUMNS,
        seed=seed,
        mntp={
            "mlm_probability": sizes.mlm_probability,
            "train_mode": sizes.train_mode,
            "lora_r": sizes.lora_r,
            "per_device_train_batch_size": sizes.batch_size,
            "per_device_eval_batch_size": sizes.batch_size,
            "learning_rate": sizes.learning_rate,
            "max_eval_samples": sizes.eval_blocks,
        },
        simcse={
            "train_mode": sizes.train_mode,
            "lora_r": sizes.lora_r,
            "per_device_train_batch_size": sizes.simcse_batch_size,
            "learning_rate": sizes.simcse_learning_rate,
        },
    )
