"""Attention, by masks and by kernels."""
