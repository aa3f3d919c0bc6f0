"""Unit tests of ``deployments``."""
