"""Fuzzing: pictures, request bodies and the HTTP surface as its OpenAPI document describes it.

- ``mutations.py``: broken files made from good ones
- ``pictures.py``: runs them through the children of a preprocessor; also a command
- ``bodies.py``: odd request bodies
- ``fields.py``: sends junk in each field to a running Prism; also a command
- ``surface.py``: sends what the OpenAPI document allows and what it does not; also a command

The tests next to them run short forms with fixed seeds.
"""
