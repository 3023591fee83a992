"""The race of `solve_ot` with its peers, in parts; `benchmarks/compare_ot.py` starts it and states its rules.

`cells` says what is solved, `peers` how each contestant is called, `worker` runs them in a process of their own and judges what
they return, `driver` decides who solves what and when to give up, and `records`, `criteria`, `report` and `figures` make something
readable of the measurements.
"""
