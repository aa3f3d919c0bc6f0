"""How many replicas each pool should have, and the loads that such a decision is tried on. Pure Python.

policy.py     decides for all pools together
rates.py      what counters say: how much work arrives, and how fast a replica does it
readings.py   turns the figures of replicas into what the policy reads
work.py       counts the work of one replica

schedule.py   what arrives when: a file of arrivals, and how it is read and written
arrivals.py   random times of arrivals for a rate that changes
synthetic.py  makes a schedule from a shape of the load and a mix of requests
servegen.py   makes a schedule from the workload of a production service
"""
