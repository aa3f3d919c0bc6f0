"""Tests of the helpers that measure."""
