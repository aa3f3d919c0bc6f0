"""Chooses the replica of a pool for each call, from what one process knows of that pool.

ledger.py         the base class: the work of each replica, and the contents of its cache as far as this process knows
pictures.py       encoder routing: which encoder a picture goes to
conversations.py  decoder routing: which decoder a call goes to

``deployments/ray_serve/request_routers.py`` connects these classes to Ray Serve.
"""
