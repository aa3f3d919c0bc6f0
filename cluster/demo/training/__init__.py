"""Trains and evaluates the demo model; no other part of Prism imports this package.

The model:
  model.py             the geometry, and the checkpoint's files
  tokenizer.py         the tokenizer and the chat template
  settings.py          the settings of the image processor

Pictures, with the facts that are known about them:
  classes.py           the possible answers to each kind of question
  draw.py              coloured shapes
  words.py             printed words and digits
  scans.py             handwritten digits
  photos.py            photographs
  data.py              one picture of any kind; examples for the evaluation

Training:
  train.py             the command that trains
  questions.py         phrasings of the questions
  batches.py           pictures and conversations as batches of arrays
  forward.py           a fast forward pass for batches
  heads.py             classification heads that teach the vision tower
  ranks.py             one process per core
  progress.py          the lines that training prints

Measuring:
  answer.py            asks a model in this process
  evaluate.py          the command that asks a running cluster
  bench_checkpoint.py  makes the checkpoint of the bench geometry, with random weights
"""
