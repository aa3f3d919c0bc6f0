"""Unit tests of ``cluster/embeddings``."""
