"""Other policies for the sizes of pools, with which the joint policy is compared in the simulator.

serve_default.py  Ray Serve's default policy: calls per replica
knative.py        Knative's policy: calls per replica over a long and a short window
played.py         sizes that are known beforehand
clairvoyant.py    the cheapest sizes for work that is known beforehand
per_pool.py       a policy that decides for each pool on its own
recent_mean.py    the mean of a figure over the last seconds
"""
