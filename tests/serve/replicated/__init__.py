"""Tests of one running cluster with two encoders and two decoders, whose processes record Prism's calls."""
