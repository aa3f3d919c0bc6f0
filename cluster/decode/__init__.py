"""Decode stage: runs vLLM without a vision tower, and vLLM's own OpenAI layer, in one process.

In: a ``Call`` and the embeddings that it names. Out: a JSON answer, or SSE text piece by piece. No other package
    imports vllm, because vLLM's internal API changes with every release.

start.py      starts the engine and the serving objects, as vLLM's launcher does, without an HTTP server
engine.py     the running engine: health, statistics, end
answer.py     runs one call through vLLM's OpenAI layer
flags.py      the flags and environment variables of vLLM that a configuration comes to
cores.py      binds the engine to CPU cores, or lowers its priority
bounds.py     limits on what a request may ask of the engine
prompts.py    checks each prompt: pictures stay in their places, and the answer is not too large
answer_size.py  estimates the size of an answer from its request, and refuses what is too large
refusals.py   turns vLLM's refusals into Prism's errors
coalesce.py   joins pieces of streams while many streams run
steps.py      writes down the engine's outputs behind a stream, for another decoder
replay.py     repeats these outputs in vLLM, so that a stream of another decoder goes on
forcing.py    a logits processor that makes the engine generate known tokens
prefills.py   counts the prompt tokens that are prefilled, for the scaling policy
stats.py      the engine client of vLLM with times, probes and judging; the scheduler's last report
worker.py     a method that vLLM's workers gain
transport/    how embeddings reach the engine: within the request, or by shared memory
"""
