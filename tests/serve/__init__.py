"""Tests of the running cluster: real Ray Serve, real vLLM, the trained demo checkpoint."""
