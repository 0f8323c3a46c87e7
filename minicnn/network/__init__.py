"""The description of a network: layers, shapes, arrays and optimizer. Nothing here holds arrays.

Read stack.py (layers in order, and where their weights lie), layers.py, geometry.py (strides and
padding), plan.py (the arrays and passes of one batch) and optim.py. ../model.py holds the arrays.
"""
