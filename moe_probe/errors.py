"""The exceptions that moe_probe raises.

Every message is one sentence that says what was given, what there is, and what to do. The command line prints only the
message; scripts catch `MoEProbeError`, one of its five kinds, or a class below those. The docstring of each class
gives its cause and its remedy; the documentation lists the sentences by class.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self

LONGEST = 1200  # characters of a sentence


def reason(error: BaseException) -> str:
    """Returns the message of another library's error on one line, for use in a sentence; its class if it has none.

    Examples:
        >>> reason(ValueError("first line,\\n  second line."))
        'first line, second line'
    """
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


class MoEProbeError(Exception):
    """Base of every error that moe_probe raises on purpose; its message escapes unprintable characters."""

    def __init__(self, *sentences: object):
        from moe_probe.shown import brief  # imports rich, which nothing needs before an error

        super().__init__(*(brief(text, LONGEST) if isinstance(text, str) else text for text in sentences))


class CheckpointError(MoEProbeError):
    """Files that cannot be opened: missing, truncated, inconsistent or unsafe."""


class MissingFiles(CheckpointError):
    """Files are missing. Download the checkpoint again, or correct the path.

    Cause: the path is wrong, a shard (one of Grok-1's numbered tensors, or of fairseq's rank files) is missing, or
    files of two releases are mixed. A string like `owner/name` that is not a folder is a hub id: moe_probe looks for it
    in the local cache of huggingface_hub, then on the hub.

    Remedy: pass the folder that holds `config.json` and the weights. Download both, from one revision: `hf download
    ID --local-dir ckpt/NAME --include "*.safetensors" "*.json"`. Offline, a hub id must be in the cache already.
    """


class DamagedFile(CheckpointError):
    """A file is cut off or inconsistent, often by an interrupted download. Download it again.

    Cause: a download or a copy ended early, or Git LFS left its pointer (a text of three lines) in place of the file;
    or `config.json` was edited or belongs to another model. Opening a checkpoint checks headers and sizes, before any
    work.

    Remedy: download the file that the message names again; `hf download` repeats only what differs. Pass fields that a
    format does not store to `load(..., config={...})`.
    """


class UnsafeFile(CheckpointError):
    """A file would run code or leads out of its folder. Use the checkpoint of a publisher whom you trust.

    Cause: a pickle is a program; a file of tensors needs only a few harmless names, but this one imports others.
    moe_probe ran nothing of it. Or the index, or a symbolic link, leads out of the checkpoint's folder (links inside
    the cache of huggingface_hub are allowed).

    Remedy: use a safetensors release. If a pickle is yours and you trust it, load it with torch and save only its
    tensors. Copy a file from elsewhere into the folder, and list it in the index without a path.
    """


class WeightError(MoEProbeError):
    """A tensor that is missing, has the wrong shape for its configuration, or holds NaN or infinity."""


class MissingWeight(WeightError):
    """The files lack a tensor that the configuration requires. The configuration or the files are of another model.

    Cause: the download is incomplete, or `config.json` belongs to another release. moe_probe never fills in zeros or
    random numbers for a missing tensor.

    Remedy: check that `config.json` and the weights come from one release, and that all shards are there.
    """


class WrongShape(WeightError):
    """A tensor's shape differs from the configuration. The configuration or the files are of another model.

    Cause: the configuration belongs to another size of the model, or the file holds the matrix transposed.

    Remedy: use the configuration that was published with the weights.
    """


class NotFinite(WeightError):
    """Values are NaN or infinite. The weights are damaged, or values overflow in the dtype that the model computes in.

    Cause: the file is damaged, the model was saved after it diverged, or activations overflow (the largest float16 is
    65,504).

    Remedy: for weights, download the file again, or use an earlier training step. For activations, `load(...,
    dtype=torch.float32)`.
    """


class FamilyError(MoEProbeError):
    """A model whose type is unknown, or that has no experts although experts are needed."""


class UnknownModel(FamilyError):
    """The model type, or the naming of its layers, is unknown. Use a supported family or add one.

    Cause: neither moe_probe nor the installed transformers knows `model_type`, or no family knows the names of its
    layers. moe_probe never runs remote code that `config.json` names.

    Remedy: if the model is a known one under a new name, pass the known name: `load(..., config={"model_type":
    "mixtral"})`, or `--config model_type=mixtral`. Otherwise declare where its matrices are (docs/add_a_family.md), or
    load the model yourself and pass the live module to `load`.
    """


class DenseModel(FamilyError):
    """The model has no experts. Pass a Mixture-of-Experts model; a dense one can be the baseline.

    Cause: the analysis needs experts, but the model is dense, or the layer is a dense layer of a Mixture-of-Experts
    model.

    Remedy: pass the Mixture-of-Experts model, with the dense one as `baseline=`. `model.moe_layers` lists the MoE
    layers; the FFN of a dense layer is `"F"`.
    """


class CannotWatch(FamilyError):
    """Hooks cannot reproduce exactly what the model's MoE layers compute, so nothing is recorded.

    Cause: hooks see the inputs and outputs of a model's experts, and moe_probe checks every capture: the weighted sum
    of the experts' outputs must equal the block's output. Here the experts are not a module of their own, or the
    block computes something else. moe_probe never returns a number that fails the check.

    Remedy: static analyses work all the same. If the model is yours, put its experts into a module that is called with
    hidden states, top-k index and weights.
    """


class InputError(MoEProbeError):
    """An argument that does not fit the model or the analysis."""


class NoSuchName(InputError):
    """A name that does not exist, often misspelled. The message lists the names that do.

    Examples:
        >>> str(NoSuchName.among("analysis", "expert_lod", ["expert_load", "record"]))
        "There is no analysis 'expert_lod'; did you mean 'expert_load'? There are expert_load, record."
    """

    @classmethod
    def among(cls, kind: str, given: object, known: Iterable[str]) -> Self:
        """Returns the error for an unknown name `given` of some `kind`, with the nearest and all `known` names."""
        names = [str(name) for name in known]
        close = get_close_matches(str(given), names, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        return cls(f"There is no {kind} {given!r}; {hint} {', '.join(names) or 'none'}.")


class OutOfRange(InputError):
    """A number outside its range. The message gives the range.

    Cause: an argument is too small or too large, or names a layer, expert, token or document that does not exist.

    Remedy: pass a number within the range. Layers keep the checkpoint's numbers, from 0: see `model.moe_layers`.
    """


class WrongType(InputError):
    """A value of a type that is not accepted. The message lists the types that are.

    Cause: a string instead of a number, a word instead of True or False, or part of a result instead of the whole.

    Remedy: pass a value of a type that the message names. A string passed as `texts` is the path of a file; put texts
    into a list.
    """


class NotFitting(InputError):
    """The request does not fit this model, these texts or these layers. The message says what would.

    Cause: a dense baseline with other layers, width or neurons; layers that differ in their experts; too few experts,
    models, texts or labels to compare; an analysis of something that only some families have (zero-computation experts,
    gating residuals, gate projections, shared experts); a result larger than its limit; a figure of part of a result.

    Remedy: look at the model first, with `moe-probe info` or `model.layer(i)`. Use a dense model of the same shapes
    (Mistral for Mixtral), or a comparison that does not depend on sizes: `level="neuron_mean"` or `metric="cka"`. Run
    layers of different kinds separately, with `layers=`.
    """


class NotComparable(InputError):
    """Checkpoints, traces or results differ in something that a comparison needs to be equal.

    Cause: token-by-token comparisons need the same tokens, layers and experts on both sides; comparisons of weights
    need the same shapes.

    Remedy: compare training steps, a base and a tuned model, or a model before and after quantization.
    `expert_activation` compares models of any kind.
    """


class NothingToRead(InputError):
    """Texts, labels or token ids that are missing, empty or cannot be read.

    Cause: a file that does not exist, holds no texts, or has several columns; more or fewer labels than documents;
    token ids beyond the vocabulary; a checkpoint or a live model without a tokenizer.

    Remedy: put texts into a list, or name the column: `column="text"`, `labels="domain"`. Download `tokenizer*` too,
    or pass a tokenizer: `load(..., tokenizer="folder, file or hub id")`. Lists of token ids need none.
    """


class Damaged(InputError):
    """A result, trace or saved progress is cut off, edited or of another format. Compute it again.

    Cause: an interrupted run, a file that another program wrote or changed, or a file of another version.

    Remedy: compute or record it again; delete the states in `checkpoint_dir` to start over.
    """


class AlreadyThere(InputError):
    """The output exists already and belongs to something else. Choose another path, or ask to overwrite it.

    Cause: moe_probe overwrites a trace only if asked to, and resumes from states in `checkpoint_dir` only with exactly
    the same model, texts, analyses and batch size.

    Remedy: pass another folder, pass `overwrite=True` for a trace, or delete the states to start over.
    """


class MissingPackage(InputError):
    """An optional package is not installed. The message gives the command that installs it."""


class MachineError(MoEProbeError):
    """The machine failed: no disk space, no memory, or a worker that died. Free some, and run again.

    Remedy: saved results stay; the same call computes the missing ones, and with `checkpoint_dir=` also resumes within
    a run. Fewer workers (`n_jobs=`), smaller batches (`batch_tokens=`) and `execution="layerwise"` need less memory.
    """
