"""The tokenizer of a checkpoint: beside the weights, or where its publisher keeps it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from moe_probe.errors import InputError

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def tokenizer_folder(path: str | Path, above: int = 0) -> Path | None:
    """The first of `path` and so many folders above it that holds a tokenizer; None if there is none."""
    folder = Path(path).expanduser().absolute()
    places = [folder, *folder.parents][: above + 1]
    return next((place for place in places if any((place / name).is_file() for name in FILES)), None)


def open_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder, a `tokenizer.json` or `tokenizer.model` file, or a hub id.

    A `tokenizer.model` that stands alone is run by sentencepiece itself, without special tokens.

    Raises:
        InputError: it cannot be opened.
    """
    path = Path(source).expanduser()
    folder = path.parent if path.is_file() else path
    try:
        if folder.is_dir() and not any((folder / name).is_file() for name in FILES[:2]):
            return SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"))
        return AutoTokenizer.from_pretrained(folder if folder.is_dir() else str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{source} holds no usable tokenizer ({reason}).") from error
