"""Unit tests of ``deployments/openapi``."""
