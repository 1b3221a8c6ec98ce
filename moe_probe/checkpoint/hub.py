"""A model on the Hugging Face hub: opening it reads configuration and headers; weight files are downloaded on use.

Only the files of one format are used: safetensors, whose headers are read with range requests; otherwise files that are
downloaded whole, such as torch's `.bin` or one GGUF model. Downloaded files stay in huggingface_hub's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import RepoSibling
from rich.console import Console

from moe_probe.checkpoint.folder import configuration, read_json
from moe_probe.checkpoint.formats.safetensors import KINDS, SafetensorsFile
from moe_probe.checkpoint.formats.tensor_parallel import FILE_NAME, joined
from moe_probe.checkpoint.identity import digest, hash_of_names
from moe_probe.checkpoint.lazy import Index, LazyTensor, Size, Stored, Typed
from moe_probe.checkpoint.store import Checkpoint, open_checkpoint, unwrapped
from moe_probe.errors import CheckpointError, DamagedFile, MissingFiles, reason

if TYPE_CHECKING:
    import torch
else:
    from moe_probe.deferred import torch

SMALL = (".json", ".model", ".txt", ".jinja", ".tiktoken", ".bpe", ".vocab", ".spm")  # suffixes of small files
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json", "consolidated.safetensors.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "qmodel.pt")
# base class that covers failed connections too; it depends on the HTTP library that huggingface_hub uses
HTTP_ERROR = next((base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"), HfHubHTTPError)
HUB_FAILURES: Any = (HTTP_ERROR, LocalEntryNotFoundError, OSError)
READERS = 8  # headers read at a time


@dataclass(frozen=True)
class Repository:
    """A revision of a repository.

    Attributes:
        name, commit: hub id of the repository, and commit of the revision.
        files: the top-level files, by name.
        folder: the folder in the cache that holds the small files.
    """

    name: str
    commit: str
    files: Mapping[str, RepoSibling]
    folder: Path
    announced: list[bool] = field(default_factory=list)

    def download(self, name: str) -> Path:
        """Returns the path of a file in the cache, downloaded if necessary; prints the total size before the first one.

        Raises:
            MissingFiles: the file cannot be downloaded.
        """
        try:
            return Path(hf_hub_download(self.name, name, revision=self.commit, local_files_only=True))
        except LocalEntryNotFoundError:
            self._announce()
        try:
            return Path(hf_hub_download(self.name, name, revision=self.commit))
        except HUB_FAILURES as error:
            raise MissingFiles(f"{name} of {self.name} cannot be downloaded ({reason(error)}); try again.") from error

    def _announce(self) -> None:
        if not self.announced:
            self.announced.append(True)
            sizes = [self.size(name) for name in self.weights]
            Console(stderr=True).print(
                f"{self.name}: {sum(sizes) / 1e9:.3g} GB in {len(sizes)} files; each is downloaded when it is needed."
            )

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""
        return self.files[name].size or 0

    @cached_property
    def weights(self) -> list[str]:
        """Names of the weight files, all of one format.

        Raises:
            MissingFiles: the repository has no weights, or lacks a file that the index names.
        """
        index = next((name for name in INDEXES if name in self.files), None)
        single = next((name for name in SINGLES if name in self.files), None)
        if single is not None and (index is None or single == index.removesuffix(".index.json")):
            return [single]
        if index is None:
            names = sorted(filter(FILE_NAME.fullmatch, self.files))
            names = names or [name for name in self.files if name.endswith(".gguf")]
            if not names:
                raise MissingFiles(f"{self.name} holds no weights at its top; pass a repository that does.")
            return names
        named = read_json(self.folder / index).get("weight_map")
        names = sorted(set(named.values())) if isinstance(named, dict) else []
        missing = next((name for name in names if name not in self.files), None)
        if not names or missing is not None:
            raise MissingFiles(f"{index} of {self.name} names {missing or 'no file'}, which the repository lacks.")
        return names


def open_hub(name: str, revision: str | None, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """Opens a model on the hub; reads its configuration, and the headers of safetensors files with range requests.

    Raises:
        MissingFiles: the hub cannot be reached, or has no such model or no weights for it.
        CheckpointError: a file is damaged.
    """
    repository = _repository(name, revision)
    weights = repository.weights
    if not all(file.endswith(".safetensors") for file in weights) or weights[0].startswith("consolidated"):
        for file in weights:
            repository.download(file)
        return open_checkpoint(repository.folder, config)
    fields = {**configuration(repository.folder), **(config or {})}
    with ThreadPoolExecutor(READERS) as pool:
        by_file = list(pool.map(lambda file: HubFile(repository, file).tensors(), weights))
    tensors = {key: tensor for part in by_file for key, tensor in part.items()}
    if FILE_NAME.fullmatch(weights[0]):
        tensors = joined(dict(zip(weights, by_file, strict=True)))
    return HubCheckpoint(repository, fields, unwrapped(tensors, fields), config)


def _repository(name: str, revision: str | None) -> Repository:
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        top = {each.rfilename: each for each in info.siblings or () if "/" not in each.rfilename}
        small = [file for file in top if file.endswith(SMALL)]
        folder = snapshot_download(name, revision=revision, allow_patterns=small)  # records the revision
    except HUB_FAILURES as error:
        raise MissingFiles(
            f"fetching {name} from the hub failed ({reason(error)}); check the name, the revision and the connection."
        ) from error
    return Repository(name, str(info.sha), top, Path(folder))


class HubFile:
    """A safetensors file of a repository: its header is read with range requests, its values after a download."""

    def __init__(self, repository: Repository, name: str):
        self.repository, self.name = repository, name

    def tensors(self) -> dict[str, LazyTensor]:
        """Returns every tensor of the header by key, unread.

        Raises:
            DamagedFile: the file has no valid header.
        """
        try:
            header = HfApi().parse_safetensors_file_metadata(
                self.repository.name, self.name, revision=self.repository.commit
            )
        except HUB_FAILURES as error:
            raise MissingFiles(f"{self.name} of {self.repository.name} cannot be read ({reason(error)}).") from error
        except Exception as error:  # the hub's library passes on any error of its parser
            raise DamagedFile(f"{self.name} of {self.repository.name} has no header ({reason(error)}).") from error
        odd = next((info.dtype for info in header.tensors.values() if info.dtype not in KINDS), None)
        if odd is not None:
            raise CheckpointError(f"{self.name} of {self.repository.name} stores {odd}, a type that is not read.")
        return {
            key: Stored(HubEntry(self, key, Size(info.shape), KINDS[info.dtype]))
            for key, info in header.tensors.items()
        }

    @cached_property
    def local(self) -> Mapping[str, LazyTensor]:
        """The tensors of the file, which is downloaded on first use."""
        return SafetensorsFile(self.repository.download(self.name)).tensors()


class HubEntry(Typed):
    """One tensor of a file on the hub."""

    def __init__(self, file: HubFile, key: str, shape: Size, kind: str):
        self.file, self.key, self.shape, self.kind = file, key, shape, kind

    def read(self, index: Index) -> torch.Tensor:
        return self.file.local[self.key][index].read()


class HubCheckpoint(Checkpoint):
    """A checkpoint whose weight files are downloaded on first use."""

    def __init__(
        self,
        repository: Repository,
        config: dict[str, Any],
        tensors: dict[str, LazyTensor],
        given: Mapping[str, Any] | None,
    ):
        files = [repository.folder / name for name in repository.weights]
        super().__init__(repository.folder, config, tensors, files, given)
        self.repository = repository

    @property
    def address(self) -> dict[str, Any]:
        return {"source": self.repository.name, "revision": self.repository.commit}

    @cached_property
    def nbytes(self) -> int:
        """Size of the weight files, in bytes, downloaded or not."""
        return sum(map(self.repository.size, self.repository.weights))

    @property
    def identity(self) -> str:
        """The identity that the same files have in the cache, computed from the hashes that the hub states."""
        stated = (self.repository.files[name] for name in self.repository.weights)
        hashes = sorted(str(each.lfs.sha256 if each.lfs else each.blob_id) for each in stated)
        return digest([hash_of_names(self.stored), *hashes])
