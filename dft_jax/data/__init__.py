"""From a file of problems to packed batches: sources -> chat -> packing -> loader."""
