"""Load tests: they speak to a running Prism over HTTP only, and time every answer.

The load of users:
  locustfile.py  Locust's users, with a web page or headless
  client.py      reads and times one streamed answer, for Locust
  probe.py       makes the same load with another HTTP client, to check Locust's figures
  workload.py    what the users ask: the kinds of chat, their mix and their requests
  report.py      tables of latencies, and whether Locust and the probe agree

Longer runs:
  soak.py        lets the probe's users chat for an hour and checks that memory stays flat
  servers.py     starts and ends the servers that a load test needs
  bench/         compares Prism with other servers on one machine
"""
