"""Prism's tests: ``unit`` mirrors ``cluster``, ``serve`` runs the real thing, ``k8s`` checks manifests, ``gpu`` needs
one."""
