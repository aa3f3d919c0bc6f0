"""How many replicas each pool should have. So far it holds the load that such a decision is tried on. Pure Python.

schedule.py   what arrives when: a file of arrivals, and how it is read and written
arrivals.py   random times of arrivals for a rate that changes
synthetic.py  makes a schedule from a shape of the load and a mix of requests
servegen.py   makes a schedule from the workload of a production service
"""
