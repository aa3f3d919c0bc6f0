"""Tests of ``cluster.scaling.baselines``."""
