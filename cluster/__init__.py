"""The logic of Prism, told along the path of a request. Nothing here knows Ray; ``deployments`` says where it runs.

    1. request     request.py      reads the client's JSON as far as Prism must            in the Router
    2. media       media/          makes bounded bytes of each picture, and names them     in the Router
    3. preprocess  preprocess.py   decodes, orients, resizes, cuts into patches            CPU pool
    4. encode      encode/         runs the vision tower                                   encoder pool
    5. decode      decode/         runs vLLM without a vision tower, in vLLM's own words   decoder pool
    6. stream      stream.py       carries the answer to the client                        in the Router

What a stage lacks it pulls: the decoder pulls embeddings from the encoders, unless it still has them, and these pull
pixels from the preprocessors. Text-only requests take 1, 5 and 6, and touch a Router and a decoder alone.

Stages never import each other; they share ``config`` (what is set), ``errors`` (how a request can fail), ``messages``
(what travels between them), ``metrics``, and the ``waterfall`` (where the time went). Beside them, ``admission`` says
what a Router takes on at a time, ``route`` which replica of a pool a call goes to, by the picture or by the
``conversation``, ``cache`` what an encoder keeps, ``single_flight`` who makes a picture that several encoders were
given, ``hub`` which files of a checkpoint a pool fetches, ``priority`` who comes first on shared CPU cores, and
``segments`` clears away what killed engines leave in shared memory. ``demo`` holds the small trained checkpoint and
everything that made it.
"""
