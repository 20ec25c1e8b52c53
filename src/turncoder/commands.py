"""The commands, each a few lines: open, call, print. Nothing heavy is imported before a command needs it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from turncoder.config.cluster import SubmitConfig
from turncoder.config.encoding import EncodeConfig, MergeConfig, MineConfig
from turncoder.config.glue import GlueConfig
from turncoder.config.heads import FinetuneConfig, HeadConfig
from turncoder.config.keys import locate_model
from turncoder.config.language import LanguageConfig
from turncoder.config.pretraining import PretrainConfig, VocabularyKeys
from turncoder.config.publishing import PublishConfig
from turncoder.config.sentences import SentencesConfig
from turncoder.config.stages import MntpConfig, PrepareConfig, SimcseConfig, SupervisedConfig, TurnConfig
from turncoder.config.values import expand_home
from turncoder.config.words import WordsConfig
from turncoder.errors import UnfinishedError, UserError
from turncoder.hub import find_run, is_model_type, list_parents, look_for_hub

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """Convert a model in memory and show, layer by layer, that attention looks both ways."""

    json: bool = False
    """Print the report as JSON."""
    allow_partial: bool = False
    """Accept a model of which only some layers can look ahead."""
    all_architectures: bool = False
    """Check every causal architecture of the installed transformers on tiny random weights (minutes)."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    """Precision of the weights; default: float32."""
    model_revision: str = "main"
    """Branch, tag or commit of a hub id."""
    cache_dir: str | None = None
    """Where downloads from the hub are kept."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


@dataclass(frozen=True, kw_only=True)
class Info:
    """Versions, devices and kernels: what a bug report needs."""

    json: bool = False
    """Print as JSON."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Compare runs: tables, plots, significance tests, and how to run everything again."""

    output_dir: str | None = None
    """Output (--output): REPORT.html, one page with everything, or REPORT.md; default: a table on the terminal."""
    json: bool = False
    """Print the rows as JSON."""
    machamp: tuple[str, ...] = ()
    """LOGDIR of MaChAmp (logs/NAME or logs/NAME/DATE): add its scores to the table."""


@dataclass(frozen=True, kw_only=True)
class Quickstart:
    """The whole path on this machine, offline, in minutes: a decoder becomes an encoder and is measured."""

    model: str | None = None
    """Turn this model instead of a small one trained here: a folder or a hub id."""
    text: str | None = None
    """Use this text instead of the prose in the installed Python packages: a file, a folder or a hub id."""
    output_dir: str = "quickstart"
    """Folder for everything that is made."""


def _train(config: MntpConfig | SimcseConfig | SupervisedConfig, words: list[str], console: Console) -> int:
    tokenizer_name = getattr(config, "tokenizer_name", None)
    teacher_name = getattr(config, "teacher_name_or_path", None)
    look_for_hub(config.model_name_or_path, tokenizer_name, teacher_name, config.dataset_name, *config.adapters)
    import turncoder
    from turncoder.train.planning import plan_training

    return _plan_or_do(config, console, plan_training, turncoder.train)


def _plan_or_do(
    config: Any,
    console: Console,
    plan: Callable[[Any], Any],
    work: Callable[[Any], Path],
    tell: Callable[[Path, Console], None] | None = None,
) -> int:
    """Show the plan of a work, or do it, tell what came of it, and print where the result is."""
    if config.dry_run:
        from turncoder.plan import show

        show(plan(config), console)
        return 0
    try:
        made = work(config)
    except UnfinishedError:
        if tell is not None:
            tell(Path(config.output_dir), console)
        raise
    if tell is not None:
        tell(made, console)
    console.print(f"{made}", highlight=False)
    return 0


def _turn(config: TurnConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, config.text, config.words)
    from turncoder.turn.ladder import plan_turn, turn

    if config.dry_run:
        plan_turn(config, console)
        return 0
    turn(config)
    return 0


def _prepare(config: PrepareConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, _name_config(config), config.tokenizer_name, config.dataset_name)
    from turncoder.data.tokenizer import end_documents
    from turncoder.model.backbone import load_model_config
    from turncoder.train.text import choose_block_size, open_blocks, open_tokenizer

    tokenizer, name = open_tokenizer(config), config.model_name_or_path
    if config.pretrains:
        tokenizer = end_documents(tokenizer, config.append_eos)
    block_size = choose_block_size(config, load_model_config(name, **locate_model(config)) if name else None, tokenizer)
    folder = Path(config.output_dir) if config.output_dir else None
    train, held_out = open_blocks(config, tokenizer, block_size, folder)
    for split, blocks in (("train", train), ("validation", held_out)):
        counts = ", ".join(f"{count:,} {what}" for what, count in blocks.counts.items())
        console.print(f"{split}: {counts}", highlight=False)
    console.print(f"{train.file.folder}", highlight=False)
    return 0


def _check(flags: Check, words: list[str], console: Console) -> int:
    if flags.all_architectures:
        from rich.progress import Progress

        from turncoder.model import architectures

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("architectures")
            rows = architectures.check_all(
                lambda done, total, name: bar.update(task, completed=done, total=total, description=name)
            )
        if flags.json:
            console.print_json(data=[row.to_dict() for row in rows])
        else:
            console.print(architectures.architectures_markdown(rows), highlight=False, markup=False)
        return 0
    if len(words) != 1:
        raise UserError("check needs one MODEL: a folder or a hub id (or --all-architectures)")
    look_for_hub(words[0])
    from turncoder.artifact import OPENS
    from turncoder.model.attention import make_bidirectional
    from turncoder.model.backbone import load_language_model

    model = load_language_model(
        words[0],
        **locate_model(flags),
        dtype=flags.dtype,
        attn_implementation=flags.attn_implementation,
    )
    report = make_bidirectional(model, allow_partial=flags.allow_partial)
    if flags.json:
        console.print_json(data=report.to_dict())
        return 0
    console.print(report.table())
    facts = {
        "layers": report.summary,
        "attention": report.implementation,
        "conversion": ", ".join(report.how) or "none needed",
        "left padding": report.left_padding,
        "plain AutoModel opens a saved copy": OPENS[report.reopens],
    }
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", highlight=False, markup=False)
    return 0


def _encode(config: EncodeConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, config.input_file, *config.adapters)
    from turncoder.encode.vectors import encode_file
    from turncoder.estimate import plan_encode

    return _plan_or_do(config, console, plan_encode, encode_file)


def _words(config: WordsConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.dataset_name, *_list_models(config))
    if config.grid:
        from turncoder.grid import run_grid

        folder = run_grid(config)
        if not config.dry_run:
            console.print((folder / "grid.md").read_text(encoding="utf8"), highlight=False, markup=False)
        console.print(f"{folder}", highlight=False)
        return 0
    if config.export_machamp:
        from turncoder.train.wordtasks import export_splits

        console.print(f"{export_splits(config)}", highlight=False)
        return 0
    if config.evaluate:
        from turncoder.evaluate.scoring import evaluate_run, show

        show(evaluate_run(config), console)
        return 0
    if config.dry_run:
        from turncoder.plan import show as show_plan
        from turncoder.train.wordplan import plan_words

        show_plan(plan_words(config), console)
        return 0
    import turncoder
    from turncoder.evaluate.results import read_results
    from turncoder.evaluate.scoring import show

    run = turncoder.train(config)
    show(read_results(run), console)
    console.print(f"{run}", highlight=False)
    return 0


def _list_models(config: WordsConfig) -> Iterable[str | None]:
    """List what has to be opened: what the keys name, or what the run that is evaluated was made from."""
    if not config.evaluate:
        return [config.model_name_or_path, *config.adapters]
    run = find_run(config.evaluate)
    return list_parents(run) if run and not (Path(config.evaluate) / "model").is_dir() else []


def _name_config(config: VocabularyKeys) -> str | None:
    """Give the name of an architecture's config, unless it is that of the architecture itself, such as llama."""
    return None if config.config_name and is_model_type(config.config_name) else config.config_name


def _pretrain(config: PretrainConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, _name_config(config), config.tokenizer_name, config.dataset_name)
    import turncoder
    from turncoder.train.pretrainplan import plan_pretrain

    return _plan_or_do(config, console, plan_pretrain, turncoder.train)


def _glue(config: GlueConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, None if config.data else "nyu-mll/glue", *config.adapters)
    import turncoder
    from turncoder.evaluate.glue import show
    from turncoder.evaluate.glueplan import plan_glue
    from turncoder.evaluate.results import read_results

    return _plan_or_do(
        config, console, plan_glue, turncoder.train, lambda run, console: show(read_results(run), console)
    )


def _evaluate_language(config: LanguageConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, *config.tasks)
    from turncoder.evaluate.language import evaluate_language, show
    from turncoder.evaluate.languageplan import plan_language

    return _plan_or_do(config, console, plan_language, evaluate_language, show)


def _evaluate_sentences(config: SentencesConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, *config.adapters, *config.tasks, *config.languages)
    from turncoder.evaluate.mtebplan import plan_sentences
    from turncoder.evaluate.mtebruns import evaluate_sentences, show

    return _plan_or_do(config, console, plan_sentences, evaluate_sentences, show)


def _add_head(config: HeadConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, config.dataset_name)
    from turncoder.headless import add_head, plan_head

    return _plan_or_do(config, console, plan_head, add_head)


def _mine(config: MineConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, config.pairs_file, config.corpus_file, *config.adapters)
    from turncoder.estimate import plan_mine
    from turncoder.mining import mine_file

    return _plan_or_do(config, console, plan_mine, mine_file)


def _merge(config: MergeConfig, words: list[str], console: Console) -> int:
    look_for_hub(config.model_name_or_path, *config.adapters)
    from turncoder.estimate import plan_merge
    from turncoder.merging import merge_to_folder

    return _plan_or_do(config, console, plan_merge, merge_to_folder)


def _publish(config: PublishConfig, words: list[str], console: Console) -> int:
    if config.dry_run:
        from turncoder.publish.publication import prepare, show

        show(prepare(config), console)
        return 0
    from turncoder.publish.upload import publish

    console.print(f"{publish(config)}", highlight=False)
    return 0


def _info(flags: Info, words: list[str], console: Console) -> int:
    from turncoder.info import gather, show

    show(gather(), console, as_json=flags.json)
    return 0


def _report(flags: Report, words: list[str], console: Console) -> int:
    from turncoder.report.summary import check_output, read_baseline, read_runs, show, write_report

    if not words and not flags.machamp:
        raise UserError("report needs at least one RUN: a run folder")
    if (output := check_output(flags.output_dir)) is not None:
        if flags.machamp or flags.json:
            raise UserError(f"--output {output}: --machamp and --json are for the table on the terminal; drop one")
        write_report([Path(word) for word in words], output)
        console.print(f"{output}", highlight=False)
        return 0
    runs = read_runs([Path(word) for word in words]) + [read_baseline(Path(folder)) for folder in flags.machamp]
    show(runs, console, as_json=flags.json)
    return 0


def _submit(config: None, words: list[str], console: Console) -> int:
    from turncoder.cluster.queue import submit

    return submit(words, console)


def _quickstart(flags: Quickstart, words: list[str], console: Console) -> int:
    look_for_hub(flags.model, flags.text)
    from turncoder import quickstart

    quickstart.run(model=flags.model, text=flags.text, output=Path(expand_home(flags.output_dir)))
    return 0


@dataclass(frozen=True)
class Command:
    """A command: what it takes beside flags, its flags, what it calls, and the keys that its first words stand for."""

    takes: str
    flags: type
    run: Callable[[Any, list[str], Console], int]
    keys: tuple[str, ...] = ()


COMMANDS = {
    "quickstart": Command("", Quickstart, _quickstart),
    "check": Command("MODEL", Check, _check),
    "prepare": Command("[CONFIG]", PrepareConfig, _prepare),
    "turn": Command("MODEL [CONFIG]", TurnConfig, _turn, ("model_name_or_path",)),
    "mntp": Command("[CONFIG]", MntpConfig, _train),
    "simcse": Command("[CONFIG]", SimcseConfig, _train),
    "supervised": Command("[CONFIG]", SupervisedConfig, _train),
    "pretrain": Command("[CONFIG]", PretrainConfig, _pretrain),
    "head add": Command("MODEL [CONFIG]", HeadConfig, _add_head, ("model_name_or_path",)),
    "head finetune": Command("MODEL [CONFIG]", FinetuneConfig, _pretrain, ("model_name_or_path",)),
    "words": Command("[CONFIG]", WordsConfig, _words),
    "evaluate sentences": Command("MODEL [CONFIG]", SentencesConfig, _evaluate_sentences, ("model_name_or_path",)),
    "evaluate glue": Command("MODEL [CONFIG]", GlueConfig, _glue, ("model_name_or_path",)),
    "evaluate language": Command("MODEL [CONFIG]", LanguageConfig, _evaluate_language, ("model_name_or_path",)),
    "mine": Command("PAIRS [CONFIG]", MineConfig, _mine, ("pairs_file",)),
    "encode": Command("MODEL INPUT [CONFIG]", EncodeConfig, _encode, ("model_name_or_path", "input_file")),
    "merge": Command("MODEL [CONFIG]", MergeConfig, _merge, ("model_name_or_path",)),
    "publish": Command("FOLDER [CONFIG]", PublishConfig, _publish, ("folder",)),
    "report": Command("RUN...", Report, _report),
    "submit": Command("COMMAND [CONFIG]", SubmitConfig, _submit),
    "info": Command("", Info, _info),
}
