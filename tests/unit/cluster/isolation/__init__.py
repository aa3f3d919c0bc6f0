"""Unit tests of ``cluster/isolation``."""
