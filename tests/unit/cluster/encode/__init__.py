"""Unit tests of ``cluster/encode``."""
