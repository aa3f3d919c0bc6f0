"""Chaos: a mixed load, real kills of processes while it runs, and a verdict on every single request.

    python -m loadtest.chaos --kills 6 --seed 1

  mix.py        the requests: texts and pictures, half of them streams, all greedy
  asking.py     sends one request and says how it ended
  processes.py  finds the processes of a cluster on this machine, by their command lines
  killing.py    the seeded schedule of kills; waits until the cluster is whole again
  judging.py    right, typed error, cut or lost: the verdict on each request
  results.py    the table and the files of a run, and the sum of several runs
  running.py    one run: the undisturbed answers, then the load and the kills
  __main__.py   the command

The load speaks HTTP only. The kills need the processes, so they work on the machine where the cluster runs.
"""
