"""API keys: each has a tenant, limits, and caches that it shares with no other tenant.

In: the header ``Authorization`` of a request, and a file of hashed keys. Out: a ``Caller``, or an error. Without a file
of keys everybody gets in, and nothing here costs anything.

keys.py        what the file of keys says: one entry per key, found by the hash of the key
keys_file.py   the file, or the directory of a Kubernetes Secret: bounded, and read again when it changes
buckets.py     a token bucket
meter.py       what one key has used of its limits
control.py     lets requests in by their keys, and reads the file again while requests run
salt.py        keeps the caches of tenants apart
"""
