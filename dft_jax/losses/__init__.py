"""Objectives, and the fused loss that gives them their statistics."""
