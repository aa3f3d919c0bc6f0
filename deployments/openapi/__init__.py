"""The OpenAPI document of Prism's HTTP surface, which ``GET /openapi.json`` answers.

- ``document.py``: the document: routes, methods, parameters and statuses
- ``bodies.py``: the schemas of request bodies
- ``answers.py``: the schemas of answers, errors and headers

The document is made from the error tree, the configuration and the constants of the request stage, so it changes with
them. It names the fields that Prism reads or refuses, and the common fields of the OpenAI API. vLLM has many more,
which the Router does not know.
"""
