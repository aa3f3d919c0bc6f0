"""Unit tests of ``cluster``."""
