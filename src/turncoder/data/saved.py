"""Data sets of the `datasets` library: a folder that it saved, or one on the hub."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turncoder.errors import UserError, first_line

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["find_home", "has_split", "is_saved", "iterate_rows", "open_dataset"]

logger = logging.getLogger("turncoder")

BATCH_ROWS = 1000

# Datasets that were Python scripts: `datasets` runs none of those any more, and these are their Parquet homes.
PARQUET_HOMES = {
    "wikitext": "Salesforce/wikitext",
    "wikipedia": "wikimedia/wikipedia",
    "openwebtext": "Skylion007/openwebtext",
    "c4": "allenai/c4",
    "ag_news": "fancyzhx/ag_news",
    "imdb": "stanfordnlp/imdb",
    "cc_news": "vblagoje/cc_news",
    "conll2003": "lhoestq/conll2003",
    "eriktks/conll2003": "lhoestq/conll2003",
    "universal_dependencies": "commul/universal_dependencies",
    "universal-dependencies/universal_dependencies": "commul/universal_dependencies",
}


def is_saved(path: Path) -> bool:
    """Say whether a folder is one that ``datasets.save_to_disk`` wrote, with splits or without."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def find_home(name: str) -> str:
    """Say where a data set of the hub lies that was a script under its old name; any other name is left as it is."""
    return name if Path(name).exists() else PARQUET_HOMES.get(name, name)


def open_dataset(
    name: str,
    *,
    config: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
    key: str = "dataset_name",
) -> "Dataset":
    """Open one split.

    Parameters
    ----------
    name
        A folder that ``datasets.save_to_disk`` wrote, or a hub id.
    config, cache_dir
        Of a hub data set: its configuration, and where ``datasets`` keeps what it downloads.
    split
        Of those that there are; a saved folder without splits is what it is.
    key
        What the user gave ``name`` as, for messages.

    Raises
    ------
    UserError
        It cannot be found or read, or has no such split.
    """
    import datasets

    folder = Path(name).expanduser()
    if is_saved(folder):
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise UserError(f"{name}: this saved dataset cannot be opened ({first_line(error)})") from error
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if split not in saved:
            raise UserError(f"{name}: no split {split!r}; it has {', '.join(saved)}")
        return saved[split]
    home = find_home(name)
    if home != name:
        logger.warning("%s: %r is read from %r, its home without a script", key, name, home)
    try:
        return datasets.load_dataset(home, config, split=split, cache_dir=cache_dir)
    except Exception as error:
        raise UserError(
            f"{key}: {name!r} ({config or 'default configuration'}, split {split!r}) cannot be loaded: "
            f"{first_line(error)}; check the name and the network, or give a local file instead"
        ) from error


def has_split(name: str, split: str, *, config: str | None = None, cache_dir: str | None = None) -> bool:
    """Say whether a data set has a split, without loading it; parameters and errors as for `open_dataset`."""
    import datasets

    folder = Path(name).expanduser()
    if (folder / "dataset_dict.json").exists():
        return split in datasets.load_from_disk(str(folder))
    if is_saved(folder):
        return False
    try:
        builder = datasets.load_dataset_builder(find_home(name), config, cache_dir=cache_dir)
    except Exception as error:
        raise UserError(
            f"dataset_name: {name!r} cannot be loaded: {first_line(error)}; check the name and the network, or give a "
            "local file instead"
        ) from error
    return split in {*(builder.info.splits or {}), *(builder.config.data_files or {})}


def iterate_rows(name: str, data: "Dataset | IterableDataset") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a data set, each with its place."""
    number = 0
    for batch in data.iter(BATCH_ROWS):
        for values in zip(*batch.values(), strict=True):
            number += 1
            yield f"{name}, row {number}", dict(zip(batch, values, strict=True))
