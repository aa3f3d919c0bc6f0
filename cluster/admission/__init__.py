"""Admission: what one Router replica takes on at a time, in which order, and what it tells those that it refuses.

slots.py       the limits of one Router on requests in flight and on bytes, and what each request holds of them
kept.py        the pictures of a request, whose bytes make way for other requests once its decoder has their embeddings
cost.py        the cost of a request, estimated before any work is done for it
fair_queue.py  a queue that is fair between tenants by cost
gate.py        bounds the work inside of one stage, and lets the rest wait in fair order
bookings.py    the times at which refused requests were told to come again
stages.py      the gates in front of the encoders and the decoders, and the refusals there
"""
