"""The exceptions a person sees.

Every message is one sentence that says what was given, what there is, and what to do. The command line prints the
message alone; scripts catch `MoEProbeError`, one of its five kinds, or a class below those. The docstring of each class
says its cause and its remedy; the documentation lists the sentences by class.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Self

LONGEST = 1200  # characters of a sentence


class MoEProbeError(Exception):
    """Base of every error that moe_probe raises on purpose; what files and arguments say in it is made printable."""

    def __init__(self, *sentences: object):
        from moe_probe.shown import brief  # imports rich, which nothing needs before an error

        super().__init__(*(brief(text, LONGEST) if isinstance(text, str) else text for text in sentences))


class CheckpointError(MoEProbeError):
    """Files that cannot be opened: missing, truncated, inconsistent or unsafe."""


class MissingFiles(CheckpointError):
    """Files are not where they should be. Download the checkpoint again, or correct the path.

    Cause: the path is wrong, a shard (one of Grok-1's numbered tensors, of fairseq's rank files) is missing, or files
    of two releases are mixed. A text like `owner/name` that is no folder is a hub id: it is looked for in the local
    cache of huggingface_hub, then on the hub.

    Remedy: give the folder that holds `config.json` and the weights. Download both, from one revision: `hf download
    ID --local-dir ckpt/NAME --include "*.safetensors" "*.json"`. Offline, a hub id must be in the cache already.
    """


class DamagedFile(CheckpointError):
    """A file is cut off or inconsistent, often by an interrupted download. Download it again.

    Cause: a download or a copy ended early, or Git LFS left its pointer (a text of three lines) in place of the file;
    or `config.json` was edited or belongs to another model. Headers and sizes are checked when a checkpoint is
    opened, before any work.

    Remedy: download the file that the sentence names again; `hf download` repeats only what differs. Fields that a
    format does not store are given with `load(..., config={...})`.
    """


class UnsafeFile(CheckpointError):
    """A file would run code or leads out of its folder. Use the checkpoint of a publisher whom you trust.

    Cause: a pickle is a program; plain files of tensors need a handful of harmless names, and this one asks for more.
    Nothing of it was run. Or the index, or a symbolic link, leads out of the checkpoint's folder (links inside the
    cache of huggingface_hub are followed).

    Remedy: use a safetensors release. If a pickle is yours and you trust it, load it with torch and save its tensors
    alone. Copy a file that lies elsewhere into the folder, and name it in the index by its name alone.
    """


class WeightError(MoEProbeError):
    """A tensor that is missing, has the wrong shape for its configuration, or holds NaN or infinity."""


class MissingWeight(WeightError):
    """The files lack a tensor that the configuration asks for. The configuration or the files are of another model.

    Cause: the download is incomplete, or `config.json` belongs to another release. Nothing is ever filled with zeros
    or random numbers in place of a missing tensor.

    Remedy: see that `config.json` and the weights come from one release, and that all shards are there.
    """


class WrongShape(WeightError):
    """A tensor has another shape than the configuration says. The configuration or the files are of another model.

    Cause: the configuration is that of another size of the model, or the file holds the matrix transposed.

    Remedy: use the configuration that was published with the weights.
    """


class NotFinite(WeightError):
    """Values are NaN or infinite. The weights are damaged, or overflow in the dtype that the model computes in.

    Cause: a weight is not a number, the model was saved after it diverged, or activations overflow (float16 ends at
    65,504).

    Remedy: for weights, download the file again, or take an earlier training step. For activations, `load(...,
    dtype=torch.float32)`.
    """


class FamilyError(MoEProbeError):
    """A model whose type is unknown, or that has no experts where experts are needed."""


class UnknownModel(FamilyError):
    """The model type, or the way its layers are named, is not known. Use a supported family or add one.

    Cause: neither moe_probe nor the installed transformers knows `model_type`, or its layers are named in a way that no
    family knows. Remote code that `config.json` names is never followed.

    Remedy: if the model is a known one under a new name, say so: `load(..., config={"model_type": "mixtral"})`,
    or `--config model_type=mixtral`. Otherwise declare where its matrices are (docs/add_a_family.md), or load the model
    yourself and give the live module to `load`.
    """


class DenseModel(FamilyError):
    """The model has no experts. Pass a Mixture-of-Experts model; a dense one can be the baseline.

    Cause: a dense model, or a dense layer of a Mixture-of-Experts model, where experts are needed.

    Remedy: pass the Mixture-of-Experts model, with the dense one as `baseline=`. `model.moe_layers` lists the layers
    that route; the FFN of a dense layer is `"F"`.
    """


class CannotWatch(FamilyError):
    """The model's MoE layers do something that hooks cannot follow to the digit, so nothing is recorded.

    Cause: hooks see what goes into a model's experts and what comes out, and every capture is checked: the experts'
    outputs, weighted and added, must equal the block's output. Here the experts are no module of their own, or the
    block does something else. A number that fails the check is never given out.

    Remedy: static analyses work all the same. If the model is yours, give its experts a module that is called with
    hidden states, top-k index and weights.
    """


class InputError(MoEProbeError):
    """An argument that does not fit the model or the analysis."""


class NoSuchName(InputError):
    """A name that does not exist, often misspelt. The message lists the names that do.

    Examples:
        >>> str(NoSuchName.among("analysis", "expert_lod", ["expert_load", "record"]))
        "There is no analysis 'expert_lod'; did you mean 'expert_load'? There are expert_load, record."
    """

    @classmethod
    def among(cls, kind: str, given: object, known: Iterable[str]) -> Self:
        """The error for a name `given` of some `kind`, with the nearest of the `known` names and all of them."""
        names = [str(name) for name in known]
        close = get_close_matches(str(given), names, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        return cls(f"There is no {kind} {given!r}; {hint} {', '.join(names) or 'none'}.")


class OutOfRange(InputError):
    """A number outside its range. The message gives the range.

    Cause: an argument is too small or too large, or names a layer, expert, token or document that there is not.

    Remedy: take a number of the range. Layers keep the checkpoint's numbers, from 0: see `model.moe_layers`.
    """


class WrongType(InputError):
    """A value of a type that is not accepted. The message lists the types that are.

    Cause: a text in place of a number, a word in place of True or False, part of a result in place of the whole.

    Remedy: pass a value of a type that the sentence names. A string as `texts` is the path of a file; put texts into
    a list.
    """


class NotFitting(InputError):
    """The request does not fit this model, these texts or these layers. The message says what would.

    Cause: a dense baseline of other layers, width or neurons; layers that differ in their experts; too few experts,
    models, texts or labels to compare; an analysis of what only some families have (zero-computation experts, gating
    residuals, gate projections, shared experts); more than may be held; a figure of part of a result.

    Remedy: look first, with `moe-probe info` or `model.layer(i)`. Take a dense model of the same shapes (Mistral for
    Mixtral), or compare where sizes do not matter: `level="neuron_mean"` or `metric="cka"`. Run layers of different
    kinds apart, with `layers=`.
    """


class NotComparable(InputError):
    """Checkpoints, traces or results that differ where a comparison needs them to agree.

    Cause: token-by-token comparisons need the same tokens, layers and experts on both sides; comparisons of weights
    need the same shapes.

    Remedy: compare training steps, base and tuned, or before and after quantization. `expert_activation` takes models
    of any kind.
    """


class NothingToRead(InputError):
    """Texts, labels or token ids that are missing, empty or cannot be read.

    Cause: a file that is not there, holds no texts, or has several columns; labels that are not one for each
    document; token ids beyond the vocabulary; a checkpoint without a tokenizer (a live model comes without one).

    Remedy: put texts into a list, or say which column: `column="text"`, `labels="domain"`. Download `tokenizer*` too,
    or pass one: `load(..., tokenizer="folder, file or hub id")`. Lists of token ids need none.
    """


class Damaged(InputError):
    """A result, trace or saved progress that is cut off, edited or of another format. Compute it again.

    Cause: a run that was interrupted, a file that another program wrote or changed, or one of another version.

    Remedy: compute or record it again; delete the states in `checkpoint_dir` to begin anew.
    """


class AlreadyThere(InputError):
    """The output exists and belongs to something else. Choose another place, or ask to overwrite it.

    Cause: a trace is never overwritten unasked, and states in `checkpoint_dir` go on only with the very same model,
    texts, analyses and batch size.

    Remedy: give another folder, `overwrite=True` for a trace, or delete the states to begin anew.
    """


class MissingPackage(InputError):
    """An optional package is not installed. The message gives the command that installs it."""


class MachineError(MoEProbeError):
    """The machine failed: no space on the disk, no memory, a worker that died. Free some, and run again.

    Remedy: what was computed is kept; the same call goes on with what is missing, with `checkpoint_dir=` also within
    a run. Fewer workers (`n_jobs=`), smaller batches (`batch_tokens=`) and `execution="layerwise"` need less memory.
    """
