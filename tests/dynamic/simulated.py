"""Corpora and routing whose truth is known: what every interval, chance level and p-value is held against.

A simulation makes one corpus and gives, by variable, what was found and what should have been: `cover` (an interval and
the truth), `null` (whether chance was excluded where there is nothing else).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import xarray as xr
from scipy.stats import hypergeom
from small_batches import ByHand, batch_of, corpus_of, layer_of

from moe_probe import comparisons, dynamic
from moe_probe.comparisons.side_by_side import Routing, means
from moe_probe.intervene.measured.intervals import pooled
from moe_probe.pruning.agreeing import Compared, intervals
from moe_probe.statistics.rates import mantel

E, K, VOCABULARY = 8, 2, 40
KINDS = ("ffn",) * 4 + ("zero",) * 4
SKEWED = np.log([0.35, 0.2, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02])
TOPICS = np.random.default_rng(11).normal(size=(4000, E))  # the population of documents
WORDS = np.random.default_rng(12).normal(size=(VOCABULARY, E))
FREQUENCY = 1 / np.arange(1, VOCABULARY + 1) / (1 / np.arange(1, VOCABULARY + 1)).sum()
Rates = Mapping[
    str, np.ndarray
]  # by `variable: cover` or `variable: null`, whether it held the truth, or excluded chance


@dataclass(frozen=True)
class World:
    """How texts and routers behave.

    Attributes:
        documents: number of them.
        even: whether experts are preferred alike.
        topic, word: how much a document's topic and a token's id matter.
        lengths: `equal`, `unequal` (lognormal), or `correlated`: a text cut into lines, its topic drifting slowly.
        labels: number of labels that do not matter.
        sizes: of the labels, `equal` or `unequal` (1 : 4).
        order: of the lines, `sorted` by label or `in turn`.
        dead: experts that are never chosen.
    """

    documents: int = 40
    even: bool = True
    topic: float = 0.0
    word: float = 0.0
    lengths: str = "equal"
    labels: int = 2
    sizes: str = "equal"
    order: str = "sorted"
    dead: int = 0

    def preference(self):
        preference = np.zeros(E) if self.even else SKEWED.copy()
        preference[E - self.dead :] = -60
        return preference

    def draw(self, rng, length=40, subtokens=1):
        """A corpus and its logits, (rows, E)."""
        count = self.documents
        if self.lengths == "unequal":
            lengths = np.maximum(5, np.exp(rng.normal(3.3, 0.8, count))).astype(int)
        else:
            lengths = np.full(count, length)
        ids = [rng.choice(VOCABULARY, each, p=FREQUENCY) for each in lengths]
        corpus = corpus_of([each.tolist() for each in ids], self.names(count))
        topics = self.topic * TOPICS[rng.integers(len(TOPICS), size=count)]
        if self.lengths == "correlated":
            topics = np.repeat(topics[::4], 4, 0)[:count]
        mean = self.preference() + np.repeat(topics, lengths, 0) + self.word * WORDS[np.concatenate(ids)]
        mean = np.repeat(mean, subtokens, 0)
        return corpus, mean + rng.gumbel(size=mean.shape)

    def names(self, count):
        if self.sizes == "unequal":
            labels = np.where(np.arange(count) % 5 == 0, 0, 1)
        else:
            labels = np.arange(count) % self.labels
        return [f"t{label}" for label in (np.sort(labels) if self.order == "sorted" else labels)]


def seen(analysis, corpus, *logits, kinds=None, subtokens=1):
    """The result of an analysis of these logits, a layer each."""
    layers = [layer_of(E, K, at, subtokens=subtokens, kinds=kinds) for at in range(len(logits))]
    for layer, values in zip(layers, logits, strict=True):
        values = torch.as_tensor(values, dtype=torch.float32)
        analysis.update(batch_of(layer, corpus, values, values.softmax(-1).topk(K).indices))
    return analysis.result(ByHand(*layers, corpus=corpus))


@cache
def truth(world: World, quantity: str):
    """Of the population, from 200,000 tokens of documents of 50."""
    rng = np.random.default_rng(7)
    rows = 4000
    mean = world.preference() + np.repeat(world.topic * TOPICS[:rows], 50, 0)
    ids = rng.choice(VOCABULARY, len(mean), p=FREQUENCY)
    mean = mean + world.word * WORDS[ids]
    order = np.argsort(-(mean + rng.gumbel(size=mean.shape)), axis=1)
    chosen = np.zeros(mean.shape)
    np.put_along_axis(chosen, order[:, :K], 1, axis=1)
    share = chosen.mean(0)
    first = np.eye(E)[order[:, 0]]
    if quantity == "share":
        return share / K
    if quantity == "lift":
        return (chosen.T @ chosen) / len(chosen) / np.outer(share, share)
    if quantity == "repetition":
        one, two = (each.reshape(rows, 50, E) for each in (first, chosen))
        return np.array([((each[:, 1:] * each[:, :-1]).sum(-1) > 0).mean() for each in (one, two)])
    occurrences = np.bincount(ids, minlength=VOCABULARY)[:, None]
    by_id = np.stack([np.bincount(ids, column, VOCABULARY) for column in chosen.T], axis=1) / occurrences
    if quantity == "vocabulary":
        return (FREQUENCY[:, None] * by_id**2).sum(0) / (FREQUENCY[:, None] * by_id).sum(0)
    first_by_id = np.stack([np.bincount(ids, column, VOCABULARY) for column in first.T], axis=1) / occurrences
    return (FREQUENCY**2 * (first_by_id**2).sum(1)).sum() / (FREQUENCY**2).sum()


def inside(ds, name, value):
    """Whether the interval holds the value, where there is one."""
    low, high = (np.asarray(ds[f"{name}_{end}"], float) for end in ("low", "high"))
    known = ~np.isnan(low)
    value = np.broadcast_to(value, low.shape)
    return (low[known] <= value[known]) & (value[known] <= high[known])


def outside(ds, name, value):
    return ~inside(ds, name, np.asarray(value, float))


def expert_load(rng, world):
    corpus, logits = world.draw(rng)
    ds = seen(dynamic.ExpertLoad(), corpus, logits).isel(layer=0)
    share = truth(world, "share")
    found = {
        "label_share: cover": inside(ds, "label_share", share),
        "share: cover": inside(ds, "share", share),
        "label_share_chance: null": outside(ds, "label_share", ds.label_share_chance),
        "label_share_p: null": (ds.label_share_p.values < 0.05).ravel(),
        "label_share_q: null": np.array([bool((ds.label_share_q < 0.05).any())]),
    }
    if not world.even:
        found["cv2_load: cover"] = inside(ds, "cv2_load", share.var() / share.mean() ** 2)
        found["entropy: cover"] = inside(ds, "entropy", -(share * np.log(share)).sum() / np.log(E))
        found["max_violation: cover"] = inside(ds, "max_violation", share.max() * E - 1)
    return found


def task_load(rng, world):
    corpus, logits = world.draw(rng)
    tasks = sorted({document.label for document in corpus.documents})
    analysis = dynamic.TaskLoad(accuracy={task: float(rng.random()) for task in tasks} if len(tasks) > 2 else None)
    ds = seen(analysis, corpus, logits, kinds=KINDS).isel(layer=0)
    share = truth(world, "share")
    found = {
        "share: cover": inside(ds, "share", share),
        "ffn_per_token: cover": inside(ds, "ffn_per_token", K * share[:4].sum()),
        "share_chance: null": outside(ds, "share", ds.share_chance),
        "share_p: null": (ds.share_p.values < 0.05).ravel(),
        "share_q: null": np.array([bool((ds.share_q < 0.05).any())]),
    }
    for name in ("task_distance", "ffn_spread"):
        found[f"{name}: cover"] = inside(ds, name, 0)
        found[f"{name}_chance: null"] = np.array([bool(ds[name] > ds[f"{name}_chance_high"])])
        found[f"{name}_p: null"] = np.array([bool(ds[f"{name}_p"] < 0.05)])
    if "zero_accuracy_p" in ds:
        found["zero_accuracy_p: null"] = np.array([bool(ds.zero_accuracy_p < 0.05)])
    return found


def coactivation(rng, world):
    corpus, logits = world.draw(rng)
    ds = seen(dynamic.Coactivation(), corpus, logits).isel(layer=0)
    apart = ds.where(ds.expert != ds.other)
    found = {"lift: cover": inside(apart, "lift", truth(world, "lift"))}
    return found if world.topic else found | {"chance_lift: null": outside(apart, "lift", ds.chance_lift)}


def flow(rng, world):
    corpus, logits = world.draw(rng)
    before = np.argsort(-world.draw(rng)[1], axis=1)[:, :K]
    layer = layer_of(E, K, 1)
    values = torch.as_tensor(logits, dtype=torch.float32)
    analysis = dynamic.Coactivation()
    batch = batch_of(layer, corpus, values, values.topk(K).indices)
    analysis.update(batch.with_before(0, torch.from_numpy(before.copy())))
    ds = analysis.result(ByHand(layer, corpus=corpus)).isel(layer=0)
    rows = np.bincount(before.ravel(), minlength=E)
    error = np.sqrt(ds.flow_chance * (1 - ds.flow_chance) / K / xr_like(ds, rows))
    return {
        "flow_chance: null": (abs(ds.flow - ds.flow_chance) > 1.96 * error).values.ravel(),
        "flow_excess: null": outside(ds, "flow_excess", 0),
    }


def xr_like(ds, rows):
    return ds.flow.isel(expert=0, drop=True).copy(data=rows)


def token_specialization(rng, world):
    corpus, logits = world.draw(rng)
    ds = seen(dynamic.TokenSpecialization(), corpus, logits).isel(layer=0)
    found = {"position_share: cover": inside(ds, "position_share", truth(world, "share"))}
    found["repetition: cover"] = inside(ds, "repetition", truth(world, "repetition"))
    if world.word and not world.topic:
        vocabulary = truth(world, "vocabulary")
        found["vocabulary_specialization: cover"] = inside(ds, "vocabulary_specialization", vocabulary)
        found["vocabulary_mean: cover"] = inside(ds, "vocabulary_mean", vocabulary.mean())
        found["context_independence: cover"] = inside(ds, "context_independence", truth(world, "context"))
    if not world.word:
        found["position_chance: null"] = outside(ds, "position_share", ds.position_chance)
        found["repetition_chance: null"] = outside(ds, "repetition", ds.repetition_chance)
        found["position_excess: null"] = outside(ds, "position_excess", 0)
        found["repetition_excess: null"] = outside(ds, "repetition_excess", 0)
        found["vocabulary_p: null"] = (ds.vocabulary_p.values < 0.05).ravel()
        found["vocabulary_q: null"] = np.array([bool((ds.vocabulary_q < 0.05).any())])
        found["context_p: null"] = np.array([bool(ds.context_p < 0.05)])
        for name, chance in (
            ("vocabulary_specialization", "vocabulary_chance"),
            ("vocabulary_mean", "vocabulary_mean_chance"),
            ("context_independence", "context_chance"),
        ):
            found[f"{chance}: null"] = outside(ds, name, ds[chance])
    return found


def ffn_experts_per_token(rng, world):
    corpus, logits = world.draw(rng)
    ds = seen(dynamic.FFNExpertsPerToken(), corpus, logits, kinds=KINDS)
    value = K * truth(world, "share")[:4].sum()
    classes = ("type", "word", "place", "piece")
    found = {f"{name}_density: cover": inside(ds, f"{name}_density", value) for name in classes}
    return found | {"chance: null": np.concatenate([outside(ds, f"{name}_density", ds.chance) for name in classes])}


def subtoken_divergence(rng, world):
    corpus, logits = world.draw(rng, subtokens=4)
    marked = rng.permutation(VOCABULARY)[: VOCABULARY // 4]
    ds = seen(dynamic.SubtokenDivergence(words=[str(word) for word in marked]), corpus, logits, subtokens=4)
    below, above = ds.difference < ds.difference_chance_low, ds.difference > ds.difference_chance_high
    in_layer = ds.layer_difference
    layer_low, layer_high = ds.layer_difference_chance_low, ds.layer_difference_chance_high
    return {
        "difference: cover": inside(ds, "difference", 0),
        "layer_difference: cover": inside(ds, "layer_difference", 0),
        "difference_chance: null": np.array([bool(below | above)]),
        "layer_difference_chance: null": ((in_layer < layer_low) | (in_layer > layer_high)).values,
        "p_value: null": np.array([bool(ds.p_value < 0.05)]),
    }


def patch_divergence(rng, world):
    pictures = [rng.random((16, 16)) for _ in range(world.documents)]
    analysis = dynamic.PatchDivergence(grid=(4, 4), pictures=pictures)
    corpus = corpus_of([rng.integers(0, VOCABULARY, 16).tolist() for _ in pictures])
    level = np.repeat(rng.normal(size=world.documents), 16 * 4)
    ds = seen(analysis, corpus, level[:, None] * SKEWED + rng.gumbel(size=(len(level), E)), subtokens=4)
    population = np.random.default_rng(3).normal(size=200_000)
    logits = population[:, None, None] * SKEWED + np.random.default_rng(4).gumbel(size=(len(population), 4, E))
    index = np.argsort(-logits, axis=2)[..., :K].reshape(len(population), -1)
    ordered = np.sort(index, axis=1)
    return {"texture_mean: cover": inside(ds, "texture_mean", (1 + (np.diff(ordered, axis=1) > 0).sum(1)).mean())}


def two_checkpoints(rng, world):
    """What `router_saturation` and `routing_drift` say of two checkpoints that have nothing to do with each other."""
    corpus, _ = world.draw(rng)
    length = corpus.num_tokens
    mean = world.preference()
    orders = [np.argsort(-(mean + rng.gumbel(size=(length, E))), axis=1)[None, :, None, :K] for _ in range(2)]
    source = ByHand(layer_of(E, K), corpus=corpus)
    routings = [Routing(f"c{at}", source, (0,), o, o[..., 0], np.zeros(o.shape[:3])) for at, o in enumerate(orders)]
    common = comparisons.side_by_side.overlap(orders[0], orders[1])[..., 0]
    found = means("overlap", ("layer",), common, routings[0], 1000)
    changed = means("changed", ("layer",), (common < 1).astype(float), routings[0], 1000)
    first = means("first", ("layer",), (orders[0][..., 0] == orders[1][..., 0]).mean(-1), routings[0], 1000)
    share = truth(world, "share") * K
    values = {name: value for name, (_, value) in (found | first | changed).items()}
    chance = comparisons.side_by_side.chosen_alike(orders[0], orders[1], E)
    first_chance = comparisons.side_by_side.chosen_alike(*(order[..., :1] for order in orders), E)
    probability = np.exp(mean) / np.exp(mean).sum()
    return {
        "saturation: cover": inside(values, "overlap", (share**2).sum() / K),
        "overlap: cover": inside(values, "overlap", (share**2).sum() / K),
        "first_saturation: cover": inside(values, "first", (probability**2).sum()),
        "changed: cover": inside(values, "changed", _changed(world)),
        "chance: null": outside(values, "overlap", chance),
        "first_chance: null": outside(values, "first", first_chance),
    }


@cache
def _changed(world):
    rng = np.random.default_rng(8)
    one, other = (
        np.sort(np.argsort(-(world.preference() + rng.gumbel(size=(400_000, E))), 1)[:, :K], 1) for _ in range(2)
    )
    return (one != other).any(1).mean()


def gate_regression(rng, world):
    """Mantel's test of clustered experts and clustered gates that have nothing to do with each other."""
    groups = [rng.permutation(np.arange(16) % 4) for _ in range(2)]
    points = [rng.normal(size=(4, 6))[group] + 0.5 * rng.normal(size=(16, 6)) for group in groups]
    cosines = [np.corrcoef(each) for each in points]
    p = mantel(*cosines, 999)
    return {"p_value: null": np.array([p < 0.05]), "q_value: null": np.array([p < 0.05])}


def loss_changes(rng, world):
    """What effects, ablations, attributions, searches and curves say: a change over all tokens, documents resampled."""
    corpus, logits = world.draw(rng)
    lengths = np.array([len(document.ids) for document in corpus.documents])
    change = logits[:, 0] - world.preference()[0]
    sums = np.add.reduceat(change, np.cumsum(lengths) - lengths)
    _, low, high = pooled(sums[:, None], lengths, 1000)
    held = inside({"change_low": low, "change_high": high}, "change", loss_change_truth(world))
    names = ("loss_change", "mean_loss_change", "control_loss_change", "label_loss_change")
    return {f"{name}: cover": held for name in names}


@cache
def loss_change_truth(world):
    """Mean over tokens: the topics' mean, and Gumbel's."""
    return world.topic * TOPICS[:, 0].mean() + np.euler_gamma


def score_agreement(rng, world):
    """A score that is related to what experts cost, and one that is not."""
    experts, units, tokens = 32, world.documents, 200
    cost = np.random.default_rng(21).normal(size=(2, experts))
    related = cost + np.random.default_rng(22).normal(size=cost.shape)
    per_token = cost + 0.1 * rng.normal(size=(units, *cost.shape))
    compared = Compared(np.stack([related, rng.normal(size=cost.shape)]), per_token.mean(0), None)
    table = xr.Dataset(
        {
            "unit_loss_change": (("unit", "layer", "expert"), tokens * per_token),
            "unit_tokens": ("unit", np.full(units, tokens)),
        }
    )
    ends = intervals(compared, table, 1000)
    found = {}
    for name, value in compared.correlations(cost[None]).items():
        of_related = {ending: ends[f"{name}_{ending}"][0] for ending in ("low", "high")}
        held = inside({f"{name}_{ending}": end for ending, end in of_related.items()}, name, value[0, 0])
        found[f"{name}: cover"] = held
    shares = compared.overlaps()
    among = hypergeom(experts, experts // 4, experts // 4)
    low, high = np.array(among.interval(0.95)) / (experts // 4)
    assert (shares["overlap_chance"] == among.mean() / (experts // 4)).all()
    found["overlap_chance: null"] = (shares["overlap"][1] < low) | (shares["overlap"][1] > high)
    return found


ORDINARY = (World(), World(topic=1.0), World(even=False, topic=1.0, lengths="unequal"), World(documents=10, topic=1.0))
LABELED = (
    World(documents=60, topic=1.0, labels=4, order="in turn"),
    World(documents=60, topic=1.0, sizes="unequal", order="in turn"),
    World(documents=64, topic=1.0, labels=8),
    World(even=False, topic=1.0),
    World(documents=60, labels=6, topic=1.0, dead=2),
)
Simulation = Callable[[np.random.Generator, World], Rates]
SIMULATIONS: dict[str, tuple[Simulation, tuple[World, ...]]] = {
    "expert_load": (expert_load, (*LABELED, World(documents=20, even=False, topic=1.0))),
    "task_load": (task_load, LABELED),
    "coactivation": (coactivation, (*ORDINARY, World(even=False), World(documents=100, even=False))),
    "coactivation_flow": (flow, (World(), World(even=False))),
    "token_specialization": (token_specialization, (*ORDINARY, World(even=False), World(word=1.5))),
    "ffn_experts_per_token": (ffn_experts_per_token, ORDINARY),
    "subtoken_divergence": (subtoken_divergence, (World(word=1.5), World(topic=1.0), World(word=1.0, topic=1.0))),
    "patch_divergence": (patch_divergence, (World(documents=10), World(documents=30))),
    "router_saturation": (two_checkpoints, (World(), World(even=False), World(even=False, lengths="unequal"))),
    "routing_drift": (two_checkpoints, (World(),)),
    "gate_regression": (gate_regression, (World(),)),
    "loss_changes": (loss_changes, (*ORDINARY, World(documents=100, topic=1.0, lengths="unequal"))),
    "score_agreement": (score_agreement, (World(documents=10), World(documents=40))),
}
