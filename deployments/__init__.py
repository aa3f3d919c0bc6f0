"""Prism's Ray Serve application: one thin deployment per pool, around the logic in ``cluster``.

app.yaml             the application file of ``make serve``; qwen2_5_vl_32b.yaml is for the 32B model
app.py               builds the Serve application from the ``args:`` of such a file
api.py               the HTTP surface of the Router: routes, admission, errors
openapi/             the OpenAPI document, which ``GET /openapi.json`` answers
authentication.py    API keys, which the HTTP surface asks for before it reads a body
responses.py         whole answers and streams, which are sent by their request's deadline
router.py            the Router pool: a request from its body to its last byte
gates.py             the wait in the Router for room at the encoders and decoders
continuation.py      has another decoder go on with a stream whose decoder has failed
overview.py          what operators ask about the whole cluster: health, states, metrics
preprocessor.py      the preprocessor pool: pictures are prepared in child processes
encoder.py           the encoder pool: vision towers
decoder.py           the decoder pool: vLLM engines
ray_serve/           everything that uses less public parts of Ray: calls, replicas, request routers, HAProxy
local/               one machine: the ``prism`` command, the launcher, application files, set-up
"""
