"""Encode stage: runs the vision tower, which turns the patches of pictures into embeddings.

In: ``Pixels`` (uint8 patches). Out: ``Embedding`` (one row per token that the language model reads).

batch_queue.py      the queue in which pictures of many requests wait for a common run of the tower
batching.py         the policy of that queue: which pictures share a run, and how long the tower waits for more
picture_encoder.py  loads the tower's weights, normalises patches and runs the tower
tower.py            the tower's forward pass
plan.py             the order of a picture's patches in the tower, and which of them attend to each other
linear.py           linear layers, fused with the step that follows them where the CPU can do that
kernels.py          the tower's GPU kernels, in Triton
benchmark.py        compares the tower with the module of transformers, in numbers and in speed
"""
