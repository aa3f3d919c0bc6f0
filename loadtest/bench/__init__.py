"""Compares Prism with other servers on one machine: each gets the same checkpoint, cores, requests and client.

  python -m loadtest.bench --out bench-results            everything; ``make bench`` first sets up what this needs
  python -m loadtest.bench --only text,picture_new --systems prism,vllm --repeats 1 --quick

__main__.py   the command line: measures one system after another
workloads.py  the scenarios: their requests, their systems and their figures
requests.py   writes requests, pictures and schedules
systems.py    starts each system
binding.py    binds the processes of a system to cores
load.py       sends requests and times the answers
bars.py       medians over the repeats, and the limits that they must keep
results.py    collects the figures and writes the report
plots.py      draws the plots of the report
"""
