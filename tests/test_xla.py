"""Flags of the tests' processes: quick to compile, or as users have it."""

import pytest

from tests import xla


def test_a_level_that_is_given_has_the_emitters_that_users_have():
    given = "--xla_backend_optimization_level=3"
    assert xla.flags(2, given).split() == [given, "--xla_force_host_platform_device_count=2"]


@pytest.mark.parametrize("jaxlib, has", [("0.10.2", True), ("0.11.2", False), ("0.12.0.1", False)])
def test_a_flag_that_ends_the_process_is_not_given(jaxlib, has, monkeypatch):
    monkeypatch.setattr(xla.importlib.metadata, "version", lambda name: jaxlib)
    assert ("--xla_cpu_use_fusion_emitters=false" in xla.flags(2).split()) == has
    assert "--xla_backend_optimization_level=0" in xla.flags(2).split()
