"""Unit tests of ``cluster/decode``."""
