"""Tests of ``cluster.scaling``."""
