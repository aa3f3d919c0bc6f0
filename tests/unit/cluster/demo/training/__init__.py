"""Unit tests of ``cluster/demo/training``."""
