"""The tokenizer of a checkpoint: next to the weights, or wherever its publisher stores it."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from moe_probe.checkpoint.folder import inside, present
from moe_probe.errors import NothingToRead, WrongType, reason

Tokenizer = PreTrainedTokenizerBase | str | Path  # what can be given as one
FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
READ = {".json", ".jinja", ".model", ".txt", ".bpe", ".vocab", ".tiktoken", ".spm"}  # what a tokenizer may read


def tokenizer_folder(path: str | Path, above: int = 0) -> Path | None:
    """The first of `path` and `above` folders above it that holds a tokenizer; None if none does."""
    folder = Path(path).expanduser().absolute()
    places = [folder, *folder.parents][: above + 1]
    return next((place for place in places if any(present(place, name) for name in FILES)), None)


def check_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer | None:
    """Returns `tokenizer` if its type is one that a tokenizer can have.

    Raises:
        WrongType: the value is of another type.
    """
    if tokenizer is None or isinstance(tokenizer, PreTrainedTokenizerBase | str | Path):
        return tokenizer
    raise WrongType(
        f"tokenizer is a {type(tokenizer).__name__}; pass a tokenizer of transformers, a folder, a file or a hub id."
    )


def open_tokenizer(source: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Opens a tokenizer from a folder, a `tokenizer.json` or `tokenizer.model` file, or a hub id.

    If there is only a `tokenizer.model`, sentencepiece itself runs it, without special tokens.

    Raises:
        UnsafeFile: a file of the tokenizer is outside the folder.
        NothingToRead: there is no tokenizer, or it cannot be opened.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    path = Path(source).expanduser()
    folder = path.parent if path.is_file() else path
    if folder.is_dir():
        check_files(folder)
    try:
        if path.suffix == ".gguf":
            tokenizer = _from_gguf(path)
        else:
            tokenizer = _from_folder(folder) if folder.is_dir() else AutoTokenizer.from_pretrained(str(source))
        tokenizer.decode(tokenizer("a")["input_ids"])  # some fields are looked at only now
        return tokenizer
    except Exception as error:  # tokenizers' Rust code raises plain exceptions, others whatever a field leads to
        raise NothingToRead(
            f"{source} holds no usable tokenizer ({reason(error)}); pass another one: tokenizer=."
        ) from error


def check_files(folder: Path) -> None:
    """Raises an error if a link leads out of the folder, or a file is not a regular one.

    Raises:
        UnsafeFile: there is such a link or file; the message names the first.
    """
    for place in sorted(folder.iterdir()):
        if place.suffix in READ and (place.name in FILES or not place.is_dir()):
            inside(folder, place.name)


def _from_gguf(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the metadata of a GGUF file, as transformers reads it."""
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)


def _from_folder(folder: Path) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in FILES[:2]):
        return SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
