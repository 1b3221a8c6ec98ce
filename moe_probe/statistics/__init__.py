"""Statistics of batches: states that merge, intervals, comparisons of labels, capacity."""
