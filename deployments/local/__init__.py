"""Prism on one machine: the ``prism`` command, and what it needs to start and end a cluster.

cli.py               the ``prism`` command: ``serve``, ``check``, ``ask``, ``status``, ``schedule``, ``plan``,
                     ``simulate``, ``measure``, ``key``
schedule.py          the command ``prism schedule``
plan.py              the command ``prism plan``
simulate.py          the command ``prism simulate``
measure.py           the command ``prism measure``
key.py               the command ``prism key``, and the key that the other commands send
plan_plot.py         draws a plan
catalogue.py         reads the catalogue of GPUs that a plan is made from
gpus.yaml            the catalogue that comes with Prism
launch.py            starts Ray and the application, and ends both
processes.py         the processes of a cluster: adopted, looked after and ended
app_file.py          reads and checks application files
entries.py           says in plain words what is wrong below ``deployments:`` of such a file
problems.py          says in plain words what is wrong with such a file
install.py           sets up ``.venv``; ``make`` calls it
uv.txt               the version of uv that ``install.py`` uses, with its hashes
torchvision_cure.py  makes torchvision importable next to CPU torch
"""
