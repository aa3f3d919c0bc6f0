"""The planner: which GPUs, and how many replicas of each pool, meet a goal at the lowest price.

plan.py       searches for the cheapest sizes that meet a goal
catalogue.py  the figures that a plan is made from: a model, GPUs, prices
roofline.py   computes speeds from these figures
load.py       the work of a schedule per second, and its busiest part
"""
