"""Pressure on a running Prism, over HTTP only.

``locustfile`` has the users, ``client`` reads and times their streams. ``probe`` asks for the same with a client of
another make, so that the figures have a witness. Both draw on ``workload`` (what is asked) and ``report`` (how figures
are shown and judged). ``soak`` lets ``probe``'s users chat for an hour, and looks at memory. ``bench`` is a package of
its own: Prism beside its peers. ``gpu_encoder`` stands apart: it runs the vision tower by itself, on a machine with a
GPU and nothing else of Prism.
"""
