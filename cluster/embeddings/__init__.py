"""Keeps the embeddings of pictures and prevents that one picture is encoded twice.

cache.py          the embeddings that one process keeps, and one run per picture in that process
single_flight.py  one run per picture in the whole encoder pool
"""
