"""Unit tests of ``loadtest``."""
