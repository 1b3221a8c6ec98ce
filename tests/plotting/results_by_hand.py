"""Results built by hand, of any number of experts and layers: what figures are tested on."""

import numpy as np
import xarray as xr

BY_LAYER = ("layer", "expert")


def attrs(analysis, **more):
    return {"analysis": analysis, "model": "m", "family": "mixtral", "parameters": "{}", "fingerprint": "f"} | more


def experts(count):
    return [str(expert) for expert in range(count)]


def expert_load(count=8, layers=4, labels=("prose", "code", "all of it"), seed=0):
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(count, 0.5), size=layers)
    share[:, 1] = 0
    by_label = rng.dirichlet(np.full(count, 0.5), size=(layers, len(labels)))
    variables = {
        "share": (BY_LAYER, share),
        "label_share": (("layer", "label", "expert"), by_label),
        "label_share_low": (("layer", "label", "expert"), by_label * 0.9),
        "label_share_high": (("layer", "label", "expert"), by_label * 1.1),
        "label_share_chance": (BY_LAYER, share),
    }
    for name in ("cv2_load", "entropy", "max_violation", "switch_loss", "activation_ratio"):
        variables[name] = (("layer",), rng.uniform(size=layers))
    coords = {"layer": range(layers), "expert": experts(count), "label": list(labels)}
    return xr.Dataset(variables, coords, attrs("expert_load"))


def coactivation(count=8, layers=2, seed=0):
    rng = np.random.default_rng(seed)
    lift = np.exp2(rng.normal(size=(layers, count, count)))
    lift[:, 0, 2] = 0
    dims = ("layer", "expert", "other")
    variables = {
        "lift": (dims, lift),
        "lift_low": (dims, lift * 0.5),
        "lift_high": (dims, lift * 2),
        "chance_lift": (dims, np.full((layers, count, count), 0.57)),
        "conditional": (dims, rng.uniform(size=(layers, count, count))),
        "flow": (dims, rng.dirichlet(np.ones(count), size=(layers, count))),
        "pairs": (dims, rng.integers(0, 9, (layers, count, count))),
    }
    return xr.Dataset(
        variables, {"layer": range(layers), "expert": experts(count), "other": experts(count)}, attrs("coactivation")
    )


def similarity(count=8, layers=2, diagonal=1.0, seed=0):
    rng = np.random.default_rng(seed)
    cosine = rng.uniform(-0.1, 0.2, (layers, 3, count, count))
    cosine = cosine + cosine.swapaxes(-1, -2)
    cosine[..., range(count), range(count)] = diagonal
    coords = {"layer": range(layers), "projection": ["up", "gate", "down"], "expert": experts(count)}
    variables = {"cosine": (("layer", "projection", "expert", "other"), cosine)}
    return xr.Dataset(
        variables, coords | {"other": experts(count)}, attrs("similarity", metric="cosine", level="matrix")
    )


def norm_score_ranks(count=8, layers=2, seed=0):
    pairs = np.random.default_rng(seed).integers(90, 99, (layers, count, count))
    dims, ranks = ("layer", "norm_rank", "score_rank"), range(1, count + 1)
    variables = {"pairs": (dims, pairs), "total": (dims[1:], pairs.sum(0))}
    return xr.Dataset(
        variables, {"layer": range(layers), "norm_rank": ranks, "score_rank": ranks}, attrs("norm_score_ranks")
    )


def router_scores(layers=2, bins=20, seed=0):
    rng, which = np.random.default_rng(seed), ["highest", "second"]
    shape = (layers, 2, bins)
    variables = {
        "histogram": (("layer", "which", "bin"), rng.integers(0, 50, shape)),
        "score_mean": (("layer", "which"), rng.uniform(size=shape[:2])),
        "score_variance": (("layer", "which"), rng.uniform(size=shape[:2])),
    }
    variables |= {f"pooled_{name}": (dims[1:], values.sum(0)) for name, (dims, values) in variables.items()}
    coords = {"layer": range(layers), "which": which, "bin": np.arange(bins) / bins}
    return xr.Dataset(variables, coords, attrs("router_scores"))


def task_load(count=8, layers=4, tasks=("prose", "code", "all of it"), kinds=None, seed=0):
    rng, size = np.random.default_rng(seed), (layers, len(tasks))
    ffn = rng.uniform(1.5, 2, size)
    variables = {
        "share": (("layer", "task", "expert"), rng.dirichlet(np.ones(count), size=size)),
        "ffn_per_token": (("layer", "task"), ffn),
        "ffn_per_token_low": (("layer", "task"), ffn - 0.2),
        "ffn_per_token_high": (("layer", "task"), ffn + 0.1),
        "correlation": (("layer", "other_layer"), np.corrcoef(rng.normal(size=(layers, 9))).reshape(layers, layers)),
        "token_correlation": (("layer", "other_layer"), np.full((layers, layers), np.nan)),
        "adjacent_correlation": ((), 0.3),
        "adjacent_token_correlation": ((), np.nan),
    }
    for name in ("task_distance", "task_distance_chance", "ffn_spread"):
        variables[name] = (("layer",), rng.uniform(size=layers))
        variables[f"{name}_low"] = (("layer",), variables[name][1] - 0.1)
        variables[f"{name}_high"] = (("layer",), variables[name][1] + 0.1)
    kinds = kinds or ["ffn"] * (count - 2) + ["copy", "zero"]
    coords = {"layer": range(layers), "task": list(tasks), "expert": experts(count)}
    coords |= {"expert_kind": ("expert", kinds), "kind": list(dict.fromkeys(kinds))}
    return xr.Dataset(variables, coords, attrs("task_load"))


def router_saturation(checkpoints=("1k", "2k"), layers=1, seed=0):
    rng, size = np.random.default_rng(seed), (len(checkpoints), layers)
    variables = {}
    for name in ("saturation", "first_saturation"):
        values = rng.uniform(0.3, 0.7, size)
        variables |= {name: (("checkpoint", "layer"), values), f"{name}_low": (("checkpoint", "layer"), values - 0.1)}
        variables[f"{name}_high"] = (("checkpoint", "layer"), values + 0.1)
    variables |= {name: (("checkpoint", "layer"), np.full(size, 0.2)) for name in ("chance", "first_chance")}
    coords = {"checkpoint": list(checkpoints), "layer": range(layers)}
    return xr.Dataset(variables, coords, attrs("router_saturation"))


def token_specialization(count=8, layers=1, seed=0):
    rng = np.random.default_rng(seed)
    variables = {}
    for name, dims in {
        "vocabulary_specialization": BY_LAYER,
        "vocabulary_mean": ("layer",),
        "context_independence": ("layer",),
        "repetition": ("layer", "choice"),
    }.items():
        size = [{"layer": layers, "expert": count, "choice": 2}[dim] for dim in dims]
        values = rng.uniform(0.3, 0.7, size)
        chance = "vocabulary_mean_chance" if name == "vocabulary_mean" else f"{name.split('_')[0]}_chance"
        variables |= {name: (dims, values), f"{name}_low": (dims, values - 0.1), f"{name}_high": (dims, values + 0.1)}
        variables[chance] = (dims, values / 2)
    places = ("layer", "place", "expert")
    share = rng.dirichlet(np.ones(count), size=(layers, 3))
    variables |= {"position_share": (places, share), "position_chance": (BY_LAYER, share[:, 0])}
    variables |= {"position_share_low": (places, share * 0.9), "position_share_high": (places, share * 1.1)}
    excess = share - share[:, :1]
    variables |= {"position_excess": (places, excess), "position_excess_low": (places, excess - 0.02)}
    variables["position_excess_high"] = places, excess + 0.02
    coords = {"layer": range(layers), "expert": experts(count), "choice": ["first", "any"], "place": [0, 1, 2]}
    return xr.Dataset(variables, coords, attrs("token_specialization"))
