"""Train the tiny checkpoints of this folder, on text that every machine with Python has.

    python ckpt/train_tiny.py tiny-mixtral tiny-mistral
    python ckpt/train_tiny.py --help

Three domains, so that experts have something to specialise in: prose (documentation of Python's language and library),
code (the library's source, without that documentation) and arithmetic (generated sums and products). One byte-level BPE
of 512 entries serves every family. Nothing is downloaded and everything is seeded: one version of Python and of torch
gives one checkpoint. What was reached is written into each checkpoint's README.md.

A further family is an entry of FAMILIES: a function that returns its untrained model, and one that writes it in its
published format. It gets the same tokenizer, text and schedule.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import pydoc_data.topics
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fairseq_release
import grok_release
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import moe_probe
from moe_probe.families.deepseek.configuration import DeepseekConfig
from moe_probe.families.deepseek.modeling import DeepseekForCausalLM
from moe_probe.families.grok1.configuration import Grok1Config
from moe_probe.families.grok1.modeling import Grok1ForCausalLM
from moe_probe.families.grok1.release import ORIGINAL
from moe_probe.families.mh_moe.configuration import MhMoeConfig
from moe_probe.families.mh_moe.modeling import MhMoeForCausalLM
from moe_probe.families.moe_plus_plus.configuration import MoePlusPlusConfig
from moe_probe.families.moe_plus_plus.modeling import MoePlusPlusForCausalLM

HERE = Path(__file__).resolve().parent
SEED, VOCABULARY, LENGTH, BATCH = 0, 512, 128, 16
BOS, EOS, UNK = "<s>", "</s>", "<unk>"  # ids 0, 1, 2; byte-level BPE never emits <unk>, so it also pads
PIECE, PIECES, HELD_OUT_ROWS = 2000, 500, 64  # characters; pieces per domain in training; rows per evaluation

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "sliding_window": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


# ------------------------------------------------------------------------------------------------------------ families


def mixtral() -> MixtralForCausalLM:
    """Eight experts, two per token. The eager loop over experts is the fastest on a CPU."""
    config = MixtralConfig(**SHAPE, num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02)
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def mistral() -> MistralForCausalLM:
    """The dense baseline: one FFN, as wide as one of Mixtral's experts."""
    return MistralForCausalLM(MistralConfig(**SHAPE))


def deepseek() -> DeepseekForCausalLM:
    """One dense layer, then sixteen small experts, four per token, and two shared ones."""
    experts = {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2, "moe_intermediate_size": 40}
    config = DeepseekConfig(**{**SHAPE, "intermediate_size": 160}, **experts, router_aux_loss_coef=0.02)
    model = DeepseekForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def moe_plus_plus() -> MoePlusPlusForCausalLM:
    """Eight FFN, two constant, one copy and one zero expert; gated as the published 7B."""
    gating = {"moe_2layer_gate": False, "moe_use_logits_norm": True, "moe_feature_no_mul_topk": True}
    config = MoePlusPlusConfig(**SHAPE, **gating, num_experts=[12], router_aux_loss_coef=0.02)
    model = MoePlusPlusForCausalLM(config)
    model.set_experts_implementation("eager")
    return model


def grok1() -> Grok1ForCausalLM:
    """What the original release computes. It masks pad tokens by itself, so that id must not be that of <s>."""
    multipliers = {"embedding_multiplier_scale": 8.0, "attn_output_multiplier": 0.25}
    shape = {**SHAPE, "tie_word_embeddings": True, "pad_token_id": 2}
    model = Grok1ForCausalLM(Grok1Config(**shape, **ORIGINAL, **multipliers, router_aux_loss_coef=0.02))
    model.set_experts_implementation("eager")
    return model


def mh_moe() -> MhMoeForCausalLM:
    """Four sub-tokens per token, routed to two of eight experts in every second layer."""
    shape = {**SHAPE, "tie_word_embeddings": True, "intermediate_size": 192, "num_key_value_heads": 4}
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 192, "mhmoe_heads_number": 4}
    return MhMoeForCausalLM(MhMoeConfig(**shape, **experts))


def x_moe() -> MhMoeForCausalLM:
    """The same without sub-tokens, with the cosine router and one expert per token."""
    shape = {**SHAPE, "tie_word_embeddings": True, "intermediate_size": 192, "num_key_value_heads": 4}
    experts = {"num_experts": 8, "num_experts_per_tok": 1, "moe_intermediate_size": 96, "mhmoe_heads_number": 1}
    return MhMoeForCausalLM(MhMoeConfig(**shape, **experts, router="cosine"))


def save_safetensors(model: PreTrainedModel, folder: Path) -> None:
    """bfloat16 in shards of 1 MB."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1MB")


def save_bin(model: PreTrainedModel, folder: Path) -> None:
    """bfloat16 in two torch `.bin` files with an index, as MoE++ is published."""
    with tempfile.TemporaryDirectory() as temporary:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tensors = load_file(Path(temporary) / "model.safetensors")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(temporary) / "config.json", folder)
    keys, weight_map = sorted(tensors), {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({key: tensors[key].clone() for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1))


FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[PreTrainedModel, Path], None]]] = {
    "tiny-mixtral": (mixtral, save_safetensors),
    "tiny-mistral": (mistral, save_safetensors),
    "tiny-deepseek-moe": (deepseek, save_safetensors),
    "tiny-moe-plus-plus": (moe_plus_plus, save_bin),
    "tiny-grok-1": (grok1, grok_release.write_release),
    "tiny-mh-moe": (mh_moe, fairseq_release.write_release),
    "tiny-x-moe": (x_moe, fairseq_release.write_release),
}


# ---------------------------------------------------------------------------------------------------------------- text


def split_module(source: str) -> tuple[str, str]:
    """A module's docstrings, and its source with the docstrings' lines left out."""
    documentation, lines = [], source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documentation.append(ast.get_docstring(node))
            first, last = node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [None] * (last - first + 1)
    return "\n\n".join(documentation), "\n".join(line for line in lines if line is not None)


def sums(numbers: random.Random) -> str:
    """About one piece of lines such as `12 + 35 = 47` and `12 * 3 = 36`."""
    lines = []
    for _ in range(PIECE // 13):
        a, b, c = numbers.randrange(100), numbers.randrange(100), numbers.randrange(10)
        lines.append(f"{a} + {b} = {a + b}" if numbers.random() < 0.5 else f"{a} * {c} = {a * c}")
    return "\n".join(lines)


def documents() -> dict[str, list[str]]:
    """Whole documents by domain: topics and modules in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = [split_module(path.read_text(encoding="utf-8")) for path in sorted(library.glob("[a-z]*.py"))]
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    numbers = random.Random(SEED)
    return {
        "prose": [documentation for documentation, _ in modules] + topics,
        "code": [code for _, code in modules],
        "arithmetic": [sums(numbers) for _ in range(PIECES * 11 // 10)],
    }


def pieces(texts: list[str]) -> list[str]:
    """Pieces of PIECE characters in a seeded order, PIECES at most."""
    cut = [text[start : start + PIECE] for text in texts for start in range(0, len(text), PIECE)]
    random.Random(SEED).shuffle(cut)
    return cut[:PIECES]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that starts a text with <s> and, as Mixtral's, keeps digits apart."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        pad_token=UNK,
        model_max_length=SHAPE["max_position_embeddings"],
    )


def to_rows(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Token ids (rows, LENGTH) of the texts one after the other, each between <s> and </s>."""
    ids = [token for row in tokenizer(texts)["input_ids"] for token in [*row, tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


@dataclass(frozen=True)
class Corpus:
    """The tokenizer, and by domain the rows to train on and those held out."""

    tokenizer: PreTrainedTokenizerFast
    train: dict[str, torch.Tensor]
    held_out: dict[str, torch.Tensor]

    def unigram_entropy(self, domain: str) -> float:
        """Nats per token of a model that knows only how often each token occurs in the domain."""
        counts = torch.bincount(self.train[domain].flatten(), minlength=VOCABULARY).double()
        return torch.special.entr(counts / counts.sum()).sum().item()


def build_corpus() -> Corpus:
    """Every eleventh document, a whole module or topic, is held out: from training and from the tokenizer."""
    train, held_out = {}, {}
    for domain, texts in documents().items():
        train[domain] = pieces([text for i, text in enumerate(texts) if i % 11])
        held_out[domain] = pieces(texts[::11])
    tokenizer = train_tokenizer([text for texts in train.values() for text in texts])
    return Corpus(
        tokenizer,
        {domain: to_rows(tokenizer, texts) for domain, texts in train.items()},
        {domain: to_rows(tokenizer, texts)[:HELD_OUT_ROWS] for domain, texts in held_out.items()},
    )


# ------------------------------------------------------------------------------------------------- training, measuring


def learning_rate(step: int, steps: int) -> float:
    """Factor on the peak rate: 50 steps of warm-up, then a cosine down to 2 %."""
    return min((step + 1) / 50, 1) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)


def train(model: PreTrainedModel, rows: torch.Tensor, steps: int) -> None:
    """AdamW on random rows; with the load-balancing loss where the family has one."""
    balance = {"output_router_logits": True} if hasattr(model.config, "output_router_logits") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    choice, total, began = torch.Generator().manual_seed(SEED), 0.0, time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        batch = rows[torch.randint(len(rows), (BATCH,), generator=choice)]
        loss = model(batch, labels=batch, use_cache=False, **balance).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.item()
        if step % 100 == 0:
            print(f"  step {step:>5} of {steps}  loss {total / 100:.3f}  {time.monotonic() - began:.0f} s", flush=True)
            total = 0.0
    model.eval()


@torch.no_grad()
def losses(model: PreTrainedModel, rows_by_domain: dict[str, torch.Tensor]) -> dict[str, float]:
    """Nats per token by domain, over the first HELD_OUT_ROWS rows, without any auxiliary loss."""
    means = {}
    for domain, rows in rows_by_domain.items():
        batches = rows[:HELD_OUT_ROWS].split(BATCH)
        parts = [model(batch, labels=batch, use_cache=False).loss.item() * len(batch) for batch in batches]
        means[domain] = sum(parts) / sum(map(len, batches))
    return means


@torch.no_grad()
def least_used_expert(model: PreTrainedModel, rows: torch.Tensor) -> tuple[float, float]:
    """Smallest share of the choices that any expert of any layer gets, and the share if all got the same."""
    shares = []
    for logits in model(rows, output_router_logits=True, use_cache=False).router_logits:  # (tokens, experts) per layer
        chosen = logits.topk(model.config.num_experts_per_tok, dim=-1).indices
        shares.append(torch.bincount(chosen.flatten(), minlength=logits.shape[-1]) / chosen.numel())
    return torch.stack(shares).min().item(), 1 / len(shares[0])


# -------------------------------------------------------------------------------------------------------------- saving


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    write: Callable[[PreTrainedModel, Path], None],
) -> PreTrainedModel:
    """Write the published format and the tokenizer, and return what a user will load (in float32)."""
    write(model, folder)
    tokenizer.save_pretrained(folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return moe_probe.load(folder).module


README = """# {name}

Made by `python ckpt/train_tiny.py {name}{options}` with Python {python}, torch {torch} (seed {seed}):
{parameters:,} parameters, stored as {dtypes}; {kilobytes:,.0f} kB on disk. {steps:,} steps of {batch} rows of {length}
tokens: {tokens:,} tokens of {corpus:,} in the corpus.

Loss in nats per token, of the checkpoint as loaded from this folder. Held-out documents are whole modules and topics
that neither the model nor the tokenizer saw (arithmetic: other draws of the same sums). `unigram` is the entropy of
single tokens.

| domain | unigram | training text | held out |
|---|---|---|---|
{rows}

Rounding to what is stored moved no held-out loss by more than {rounding:.3f}.{experts}
"""


def report(
    name: str, steps: int, model: PreTrainedModel, folder: Path, corpus: Corpus, before: dict[str, float]
) -> str:
    """README.md of a checkpoint: how it was made and what it reached, measured on the reloaded model."""
    seen, unseen = losses(model, corpus.train), losses(model, corpus.held_out)
    rounding = max(abs(unseen[domain] - before[domain]) for domain in before)
    if rounding > 0.02:
        raise RuntimeError(f"{name}: a held-out loss moved by {rounding:.3f} through saving; expected 0.02 at most")
    experts = ""
    if hasattr(model.config, "num_experts_per_tok"):
        least, even = least_used_expert(model, torch.cat(list(corpus.held_out.values())))
        experts = (
            f" The least used expert of any layer gets {least:.1%} of the held-out\nchoices (even use: {even:.1%})."
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    checkpoint = moe_probe.load(folder).checkpoint
    return README.format(
        name=name,
        options="" if steps == STEPS else f" --steps {steps}",
        python=platform.python_version(),
        torch=torch.__version__.split("+")[0],
        seed=SEED,
        parameters=parameters,
        dtypes=" and ".join(sorted({str(t.dtype).removeprefix("torch.") for t in checkpoint.values()})),
        kilobytes=checkpoint.nbytes / 1000,
        steps=steps,
        batch=BATCH,
        length=LENGTH,
        tokens=steps * BATCH * LENGTH,
        corpus=sum(rows.numel() for rows in corpus.train.values()),
        rows="\n".join(f"| {d} | {corpus.unigram_entropy(d):.3f} | {seen[d]:.3f} | {unseen[d]:.3f} |" for d in unseen),
        rounding=max(rounding, 0.001),
        experts=experts,
    )


STEPS = 2500


def make(name: str, corpus: Corpus, steps: int, folder: Path) -> None:
    """Train, save, reload and describe one checkpoint."""
    torch.manual_seed(SEED)
    build, write = FAMILIES[name]
    model = build()
    print(f"{name}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    train(model, torch.cat(list(corpus.train.values())), steps)
    before = losses(model, corpus.held_out)
    reloaded = save(model, corpus.tokenizer, folder, write)
    text = report(name, steps, reloaded, folder, corpus, before)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(FAMILIES), help="checkpoints to make")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE, help="where the folders go (default: beside this script)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    corpus = build_corpus()
    for name in arguments.names:
        make(name, corpus, arguments.steps, arguments.output / name)


if __name__ == "__main__":
    main()
