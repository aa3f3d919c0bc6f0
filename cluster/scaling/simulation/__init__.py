"""A simulation of the four pools on a schedule, with the functions that route and scale the live cluster.

simulate.py      simulates a cluster on a schedule, with fixed sizes or with the policy
speeds.py        the speeds and limits of one replica of each pool
outcomes.py      the results: times of requests, sizes over time, GPU-hours
simulated.py     the four pools of a simulated cluster
request_path.py  the way of a request through them
picture_path.py  the way of a picture through them
ticks.py         the actions at regular times: reports to request routers, and decisions about sizes
sizing.py        the interface between the simulator and a policy
replicas.py      a pool: it starts and drains replicas and gives calls to them
servers.py       one Router, one preprocessor, one vision encoder
engine.py        one decoder
prompts.py       whole prompts from arrivals
events.py        the clock
"""
