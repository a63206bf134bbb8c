"""Chaos: a real cluster, real faults at random moments, and a judge of what people were shown meanwhile.

::

    python -m chaos --times 3 --seed 7 --markdown build/chaos.md

Nothing in here is part of the package. What judges is pure (`judge`, `timeline`, `table`), what breaks things is not.
"""
