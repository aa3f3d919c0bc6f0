"""Schedules: what arrives when, and how large it is.

schedule.py   the file of arrivals, and how it is read and written
arrivals.py   random times of arrivals for a rate that changes
synthetic.py  makes a schedule from a shape of the load and a mix of requests
servegen.py   makes a schedule from the workload of a production service
"""
