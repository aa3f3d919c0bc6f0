"""Tests of one running cluster with several replicas of each pool, whose processes record Prism's calls."""
