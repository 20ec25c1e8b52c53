"""What runs of ``words`` share: parts of treebanks, and tiny models."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def treebank(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """First parts of EWT's ``train``, ``dev`` and ``test``, in CoNLL-U, and of its named entities, in IOB2."""
    from tagging_models import EWT, NER, cut

    folder = tmp_path_factory.mktemp("treebank")
    for split, sentences in (("train", 60), ("dev", 25), ("test", 30)):
        cut(shared / EWT.format(split), folder / f"{split}.conllu", sentences)
        cut(shared / NER[split], folder / f"{split}.iob2", 3 * sentences)
    return folder


@pytest.fixture(scope="session")
def tiny(treebank: Path, stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a random model: ``llama``, ``bert``, ``deberta`` or ``modernbert``."""
    from tagging_models import make_decoder, make_encoder

    home = tmp_path_factory.mktemp("models")
    lines = (treebank / "train.conllu").read_text(encoding="utf8").splitlines()
    texts = [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]

    def give(kind: str) -> Path:
        if not (home / kind).exists():
            if kind == "llama":
                make_decoder(home / kind, stories)
            else:
                make_encoder(kind, home / kind, texts)
        return home / kind

    return give
