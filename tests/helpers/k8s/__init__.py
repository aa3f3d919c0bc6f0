"""Helpers of the tests of the manifests."""
