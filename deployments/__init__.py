"""Where things run: one thin Ray Serve deployment per pool, over the logic in ``cluster``.

app.yaml         what runs by default; qwen2_5_vl_32b.yaml is the real thing
app.py           builds the application from the YAML's ``args:``
application.py   reads such a file key by key
api.py           the HTTP surface of the Router: routes, admission, errors
router.py        the ingress: one request from body to last byte
preprocessor.py  pool of CPU processes
encoder.py       pool of vision towers
decoder.py       pool of vLLM engines
calls.py         calls between pools, by value or by reference; what Ray raises becomes one of Prism's errors
replicas.py      single replicas: their heap, and calls past their queues
routing.py       which replica of a pool a call goes to: Serve's side of ``cluster.routing.ledger``
ingress.py       how HTTP comes to the Router: HAProxy, set by the environment
launch.py        starts and ends a cluster on this machine
cli.py           the ``prism`` command
install.py       sets up ``.venv``
"""
