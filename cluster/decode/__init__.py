"""Decode stage: vLLM with no vision tower, and vLLM's own OpenAI layer, in one process.

In: ``Call`` and the embeddings that it names. Out: a JSON answer, or SSE text as it is made. This package is the only
place that imports vllm, whose internal API moves with every release:

    engine.py      starts and stops the engine                     (vLLM's launcher, without its HTTP server)
    answer.py      one call → vLLM's serving objects → bytes
    refusals.py    what vLLM says against a request → our errors
    placement.py   keeps text from taking the place of a picture
    worker.py      what each of vLLM's workers gains
    embeddings.py  what of embeddings may reach the engine
    transport.py   the two ways in for embeddings, one interface
    inline.py      the inline way: within the request             (through vLLM's media connector)
    shared.py      the shared way: by shared memory               (with store.py, who has room, and segment.py, one
    file) connector.py   the shared way's other end, in vLLM's processes
"""
