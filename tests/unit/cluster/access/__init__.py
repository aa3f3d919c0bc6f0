"""Unit tests of ``cluster/media``."""
