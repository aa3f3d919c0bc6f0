"""Unit tests of ``deployments/local``."""
