"""Prism beside what users would pick instead, on one machine: the same checkpoint, cores, load and client for each.

    python -m loadtest.bench --out bench-results            everything; ``make bench`` sets up what it needs first
    python -m loadtest.bench --only text,picture_new --systems prism,vllm --repeats 1 --quick

``systems`` starts one system after another; ``binding`` puts their processes on cores; ``asks`` writes the requests;
``workloads`` says which, when, and what is measured; ``load`` sends and times them; ``figures`` makes medians, ranges
and verdicts of it; ``results`` writes them down and ``plots`` draws them.
"""
