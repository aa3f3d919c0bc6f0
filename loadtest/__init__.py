"""Load tests: they speak to a running Prism over HTTP only, and time every answer.

The requests:
  schedule.py      reads a schedule of arrivals, and splits it among workers
  workload.py      makes arrivals without a file: their rate, mix and seed
  bodies.py        builds requests from the sizes of arrivals
  pictures.py      draws pictures of any size

Locust's open loop:
  locustfile.py    the file for Locust, with a web page or headless
  workers.py       starts and ends a run on one or many processes, and collects the records
  openloop.py      starts each request at its time
  chats.py         sends one request with Locust's client, and reports it to Locust's statistics
  client.py        reads and times one streamed answer; defines TTFT, ICL, ITL and lag
  priority.py      lets the client run before other processes of its machine
  probe.py         makes the same load with another HTTP client, to check Locust's figures
  report.py        tables of latencies, and whether Locust and the probe agree

The verdict on a run:
  records.py       the file with one line per request
  slo.py           reads service level objectives
  judgement.py     judges the records by the objectives
  verdict.py       the command that does so
  verdict_page.py  the report with plots
  fields.py        reads the fields of JSON and YAML strictly, for these files and for schedules

Longer runs:
  chaos/           kills processes under load and judges every request
  soak.py          sends requests for an hour and checks that memory stays flat
  servers.py       starts and ends the servers that a load test needs
  bench/           compares Prism with other servers on one machine
"""
