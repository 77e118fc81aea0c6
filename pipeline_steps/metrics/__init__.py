"""Numbers from arrays: set distances, manifolds, verification error rates and their intervals.

Every function takes NumPy arrays (or CPU tensors) and returns plain numbers; none knows a file.
"""
