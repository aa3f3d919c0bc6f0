"""Admission: the requests and bytes that one Router replica takes on at a time.

slots.py  the limits of one Router on requests in flight and on bytes, and what each request holds of them
kept.py   the pictures of a request, whose bytes make way for other requests once its decoder has their embeddings
"""
