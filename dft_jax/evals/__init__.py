"""Benchmarks, extraction and grading of answers, and scores."""
