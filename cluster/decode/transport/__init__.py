"""The two ways in which embeddings reach vLLM's workers: within the request (inline), or by shared memory (shared).

In: the embeddings of a request. Out: a ``Handoff``, the fields by which the request names them to vLLM.

handoff.py    the interface of both ways
inline.py     the inline way: vLLM reads tensors from a table through its media connector
shared.py     the shared way: this process writes each embedding into a segment of shared memory
store.py      the segments of one engine: which are in use, which are kept for reuse, which requests wait for room
segment.py    one segment: a sealed, nameless file
connector.py  the other end of the shared way, in vLLM's processes
shape.py      checks that the language model can take an embedding
"""
