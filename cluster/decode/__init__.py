"""Decode stage: vLLM with no vision tower, and vLLM's own OpenAI layer, in one process.

In: ``Call`` and the embeddings that it names. Out: a JSON answer, or SSE text as it is made. This package is the only
place that imports vllm, whose internal API moves with every release:

    engine.py      starts and stops the engine                     (vLLM's launcher, without its HTTP server)
    answer.py      one call → vLLM's serving objects → bytes
    refusals.py    what vLLM says against a request → our errors
    placement.py   keeps text from taking the place of a picture
    worker.py      what each of vLLM's workers gains
    embeddings.py  checks embeddings and hands them to vLLM        (the inline way in)
"""
