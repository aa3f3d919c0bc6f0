"""Media stage: turns the URL of a picture into bounded bytes with a size and a digest.

In: the ``data:`` or ``https:`` URL of one picture. Out: a ``Picture``.

reader.py  the stage itself: decodes or fetches a picture, checks its limits and computes its digest
fetch.py   fetches pictures over https
guard.py   opens connections to public addresses only
names.py   looks up host names
header.py  reads a picture's width and height from its header
"""
