"""Finds, watches and runs the MoE layers of a model, in memory or one layer at a time."""
