"""Benchmarks: their problems and how they are asked."""
