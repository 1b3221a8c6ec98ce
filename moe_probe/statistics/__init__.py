"""What is kept of batches and said of it: sums, intervals, labels, capacity."""
