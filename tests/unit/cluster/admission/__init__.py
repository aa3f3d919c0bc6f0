"""Unit tests of ``cluster/routing``."""
