"""Small summaries of many values that merge exactly: histograms, bin counts, and the distances between them."""
