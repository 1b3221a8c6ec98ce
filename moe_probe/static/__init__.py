"""Analyses of weights: they read the published files once and run no model."""

from moe_probe.static.analyses.gate_regression import gate_regression
from moe_probe.static.analyses.gate_similarity import gate_similarity
from moe_probe.static.analyses.pca import pca
from moe_probe.static.analyses.router_spectrum import router_spectrum
from moe_probe.static.analyses.similarity import similarity
from moe_probe.static.analyses.weight_drift import weight_drift

__all__ = ["gate_regression", "gate_similarity", "pca", "router_spectrum", "similarity", "weight_drift"]
