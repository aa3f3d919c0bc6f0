"""Tests of one running cluster with the embedded default. It ends before the tests of other clusters begin."""
