"""The demo model: a small Qwen2.5-VL that was trained from scratch, so that everything runs without a model hub.

training/    makes the model: pictures, questions, training and evaluation; it is not in the wheel
checkpoint/  the trained model, a folder of data
samples/     pictures to try the model with, a folder of data
"""
