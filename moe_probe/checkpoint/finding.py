"""Finds the files of a source: a folder, a file, an adapter with its base model, the hub's local cache, or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from moe_probe.checkpoint.adapter import base_of, is_adapter, with_adapter
from moe_probe.checkpoint.folder import present
from moe_probe.checkpoint.hub import open_hub
from moe_probe.checkpoint.store import Checkpoint, open_checkpoint, opens_alone
from moe_probe.errors import DamagedFile, MissingFiles, NotFitting, reason


def find_checkpoint(source: str | Path, revision: str | None, config: Mapping[str, Any] | None) -> Checkpoint:
    """Opens the checkpoint of a folder, of a file that holds a whole model, or of a hub id.

    Raises:
        MissingFiles: the files are neither local nor on the hub.
        NotFitting: `revision` is given for a folder or file.
        CheckpointError: the files are damaged, unsafe or of no known format.
    """
    path = Path(source).expanduser()
    if not _is_hub_id(source, path):
        refuse_revision(revision, f"the folder {path}")
        _require_folder(path)
        if is_adapter(path):
            return _on_base(path, config)
        return open_checkpoint(path, config)
    folder = _snapshot(str(source), revision)
    if folder is not None:
        with suppress(MissingFiles):  # files missing from the cache may be on the hub
            return open_checkpoint(folder, config)
    try:
        return open_hub(str(source), revision, config)
    except MissingFiles as error:
        cached = "incomplete in" if folder is not None else "not in"
        raise MissingFiles(
            f"{source} is not a folder{_nearest(path)}, is {cached} the hub's local cache, and {error}"
        ) from error


def _on_base(adapter: Path, config: Mapping[str, Any] | None) -> Checkpoint:
    """Opens the base model of an adapter with the adapter's changes; the base may have an adapter in turn."""
    adapters = [adapter]
    while is_adapter(base := Path(base_of(adapters[-1])).expanduser()):
        if any(base.samefile(each) for each in adapters):
            raise DamagedFile(
                f"The adapter in {adapters[-1]} names {base} as its base model, which is an adapter of it; correct "
                "base_model_name_or_path."
            )
        adapters.append(base)
    opened = find_checkpoint(base_of(adapters[-1]), None, config)
    for each in reversed(adapters):
        opened = with_adapter(opened, each)
    return opened


def _is_hub_id(source: str | Path, path: Path) -> bool:
    """Whether a string is a hub id: `owner/name`, and neither that path nor a folder `owner` exists."""
    named = isinstance(source, str) and source.count("/") == 1 and not source.startswith((".", "~", "/"))
    return named and not path.exists() and not path.parent.is_dir()


def _require_folder(path: Path) -> None:
    if path.is_dir() or opens_alone(path):
        return
    if path.is_file():
        raise MissingFiles(f"{path} is a file, not a folder; pass its folder, {path.parent}.")
    if present(path.parent, "config.json"):
        raise MissingFiles(f"{path} does not exist; pass the folder of the checkpoint, {path.parent}.")
    raise MissingFiles(f"{path} is not a folder{_nearest(path)}; pass the folder that holds the checkpoint's files.")


def _nearest(path: Path) -> str:
    """Returns a hint at the folder whose name is similar to that of a missing path, or an empty string."""
    try:
        names = [place.name for place in path.parent.iterdir() if place.is_dir()]
    except OSError:
        return ""
    close = get_close_matches(path.name, names, n=1)
    return f" (did you mean {path.parent / close[0]}?)" if close else ""


def _snapshot(name: str, revision: str | None) -> Path | None:
    """Returns the folder of a hub id in the local cache, or None if the cache lacks it."""
    try:
        for file in ("config.json", "params.json"):  # a snapshot may lack files that are not needed
            cached = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(cached, str):
                return Path(cached).parent
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except (HFValidationError, OSError) as error:
        raise MissingFiles(
            f"{name} is neither a folder{_nearest(Path(name))} nor a hub id ({reason(error)})."
        ) from error


def refuse_revision(revision: str | None, source: str) -> None:
    """Raises NotFitting if a revision is given for a source that is not a hub id."""
    if revision is not None:
        raise NotFitting(f"revision={revision!r} is for hub ids, but the model is {source}; omit revision=.")
