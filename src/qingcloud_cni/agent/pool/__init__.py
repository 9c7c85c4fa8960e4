"""The pool: idle NICs, waiting ADDs, cooldown and duplicate probes."""
