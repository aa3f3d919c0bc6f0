"""How many replicas each pool should have, and the loads and simulations that this is tried on. Pure Python.

policy.py     decides for all pools together
rates.py      what counters say: how much work arrives, and how fast a replica does it
readings.py   turns the figures of replicas into what the policy reads
work.py       counts the work of one replica
schedules/    what arrives when: files of arrivals, from distributions or from a production service
simulation/   simulates a cluster on a schedule, with fixed sizes or with a policy
baselines/    other policies, which the simulation compares with the joint one
planning/     searches for the cheapest cluster that meets a goal on a schedule
"""
