"""Unit tests of ``deployments/ray_serve``."""
