"""A model at work: its MoE layers found, watched and run, in memory or a layer at a time."""
