"""YaRN against an independent formula, and how a checkpoint's file gives it; its logits:
test_golden, test_parity.
"""

import math

import numpy as np
import pytest

from dft_jax.models.hf.config_reader import ConfigReader
from dft_jax.models.hf.locate import read_config
from dft_jax.models.layers import rope_frequencies
from dft_jax.models.spec import Rope, Yarn
from dft_jax.runtime import errors
from tests.conftest import GOLDEN

QWEN25 = Yarn(1e6, "yarn", factor=4.0, original_context=32768)


def yarn_in_float64(rope, head_dim):
    """[K/2], dimension by dimension, in Python's floats."""

    def dimension(turns):
        """i with base^(2i/K) · 2π · turns = context."""
        return head_dim / 2 * math.log(rope.original_context / (2 * math.pi * turns), rope.theta)

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, head_dim - 1.0)
    frequencies = []
    for i in range(head_dim // 2):
        own = rope.theta ** (-2 * i / head_dim)
        share_stretched = min(max((i - low) / (high - low or 0.001), 0.0), 1.0)
        frequencies.append(own / rope.factor * share_stretched + own * (1 - share_stretched))
    return np.array(frequencies)


@pytest.mark.parametrize("head_dim", [24, 64, 128])
@pytest.mark.parametrize(
    "rope",
    [
        QWEN25,
        Yarn(1e4, "yarn", factor=16.0, original_context=4096, truncate=False),
        Yarn(5e5, "yarn", factor=40.0, original_context=4096, beta_fast=64.0, beta_slow=0.5),
        Yarn(1e3, "yarn", factor=4.0, original_context=32),
        Yarn(1e4, "yarn", factor=2.0, original_context=5),  # a ramp of no width, at dimension 0
    ],
)
def test_yarn_frequencies(rope, head_dim):
    found, expected = rope_frequencies(rope, head_dim), yarn_in_float64(rope, head_dim)
    assert found.dtype == np.float32 and found.shape == (head_dim // 2,)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_yarn_keeps_the_fast_dimensions_and_stretches_the_slow_ones():
    """Of Qwen2.5's 64 frequencies those up to 23 are kept, from 40 on a quarter is left (worked out
    by hand).
    """
    plain = rope_frequencies(Rope(1e6), 128)
    share = rope_frequencies(QWEN25, 128) / plain
    np.testing.assert_allclose(share[:24], 1)
    np.testing.assert_allclose(share[40:], 0.25)
    assert (np.diff(share[23:41]) < 0).all()


def read(**changes):
    raw = {"rope_theta": 1e6} | changes
    reader = ConfigReader(raw, "config.json")
    rope = reader.rope(32768)
    reader.refuse_rest()
    errors.raise_if_any(reader.problems)
    return rope


SCALING = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_scaling": SCALING | {"type": "yarn"}},
        {"rope_scaling": SCALING | {"rope_type": "yarn"}},
        {"rope_scaling": SCALING | {"rope_type": "yarn", "type": "yarn", "attention_factor": None}},
        {"rope_parameters": SCALING | {"rope_type": "yarn", "rope_theta": 1e6}},
        # the context is max_position_embeddings then
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {
            "rope_scaling": SCALING
            | {"type": "yarn", "beta_fast": 32, "beta_slow": 1, "truncate": True}
        },
    ],
)
def test_every_spelling_of_yarn(raw):
    expected = Yarn(
        1e6, "yarn", 4.0, original_context=32768, attention_factor=0.1 * math.log(4) + 1
    )
    assert read(**raw) == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, 1 + 0.1 * math.log(4)),
        ({"factor": 0.5}, 1.0),
        ({"attention_factor": 1.25}, 1.25),
        ({"attention_factor": 1}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        (
            {"mscale": 0.707, "mscale_all_dim": 1.2},
            (1 + 0.0707 * math.log(4)) / (1 + 0.12 * math.log(4)),
        ),
        ({"mscale": 0.707, "mscale_all_dim": 1.2, "attention_factor": 1.5}, 1.5),
        ({"mscale": None, "mscale_all_dim": None}, 1 + 0.1 * math.log(4)),
    ],
)
def test_the_attention_factor(given, expected):
    rope = read(rope_scaling=SCALING | {"type": "yarn"} | given)
    assert rope.attention_factor == pytest.approx(expected, rel=1e-12)


def test_a_yarn_checkpoint_reads_as_far_as_it_was_stretched():
    """Qwen2.5's file says 32768 there, another of the same model 131072."""
    assert read_config(GOLDEN / "qwen2_yarn").max_length == 4 * 32
    assert read_config(GOLDEN / "llama_yarn").max_length == 8 * 32
    assert read_config(GOLDEN / "llama3").max_length == 8 * 32


def test_other_ropes_are_described_as_before():
    """A run's fingerprint has the fields of its rope: one more would make every older run another
    run.
    """
    import dataclasses

    names = [field.name for field in dataclasses.fields(Rope)]
    assert names == [
        "theta",
        "type",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_context",
    ]
    assert Rope(1e4).attention_factor == 1.0
