"""The demo model: a small Qwen2.5-VL trained from scratch, so that everything runs without a model hub.

``tokenizer`` and ``model`` make an empty checkpoint; ``draw``, ``photos``, ``scans`` and ``words`` make pictures with
facts known about them; ``questions``, ``data`` and ``batches`` turn those into conversations; ``train`` teaches;
``evaluate`` asks a running cluster. Nothing outside this package imports it, and serving never does.
"""
