"""How many replicas each pool should have, and the loads and simulations that this is tried on. Pure Python.

policy.py     decides for all pools together
rates.py      what counters say: how much work arrives, and how fast a replica does it
readings.py   turns the figures of replicas into what the policy reads
work.py       counts the work of one replica
policy.py        decides for all pools together; the live cluster does not call it yet
rates.py         what counters say: how much work arrives, and how fast a replica does it

schedule.py      what arrives when: a file of arrivals, and how it is read and written
arrivals.py      random times of arrivals for a rate that changes
synthetic.py     makes a schedule from a shape of the load and a mix of requests
servegen.py      makes a schedule from the workload of a production service

plan.py          searches for the cheapest sizes that meet a goal
catalogue.py     the figures that a plan is made from: a model, GPUs, prices
roofline.py      computes speeds from these figures
load.py          the work of a schedule per second, and its busiest part

simulate.py      simulates a cluster on a schedule, with fixed sizes or with the policy
speeds.py        the speeds and limits of one replica of each pool
outcomes.py      the results: times of requests, sizes over time, GPU-hours
simulated.py     the four pools of a simulated cluster
request_path.py  the way of a request through them
picture_path.py  the way of a picture through them
ticks.py         the actions at regular times: reports to request routers, and decisions about sizes
replicas.py      a pool: it starts and drains replicas and gives calls to them
servers.py       one Router, one preprocessor, one vision encoder
engine.py        one decoder
prompts.py       whole prompts from arrivals
events.py        the clock
"""
