"""The parts of a network. Read them in this order; ../nets.py combines them.

stack.py     a list of layers: names, shapes, and where the weights lie in flat arrays
layers.py    the layers: formulas, weights, forward and backward pass
geometry.py  strides and padding of a sliding window
plan.py      the arrays of one batch, and the passes over them
optim.py     Adam, learning-rate schedules, averaging of weights
"""
