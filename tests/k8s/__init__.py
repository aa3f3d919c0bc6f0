"""k8s tests."""
