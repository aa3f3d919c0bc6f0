"""Everything that uses less public parts of Ray and Ray Serve. tests/unit/test_house.py lists the private names.

calls.py            calls between pools: by value or by reference, and what becomes of their failures
replica.py          what each replica does for itself: its heap, its metrics, its log
retries.py          the one retry of a call, on another replica
replicas.py         calls to single replicas of a pool, past their queues
request_routers.py  chooses the replica of each call, with the classes of ``cluster.routing``
ingress.py          the base class of the Router, whose HTTP application needs the replica itself
haproxy.py          HTTP comes in through HAProxy: its environment and its corrected configuration
autoscaling.py      the policy that Serve asks for the sizes of pools
decisions.py        carries the policy's decisions to the Routers
session.py          starts Ray, and deploys an application file
status.py           the states of all pools, from Serve's controller
"""
