"""Unit tests of ``cluster/decode/transport``."""
