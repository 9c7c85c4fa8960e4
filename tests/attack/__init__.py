"""Hostile containers, processes, replies and removals, end to end on the simulator's hosts: `make attack`.

Each case is a function in one of the modules named after a letter's subject: `inheritance` (A), `identity` (B),
`replies` (C), `strangers` (D), `removals` (E). Its docstring says what is tried and what must hold. It gets hosts
from its `Scene`, and fails with an AssertionError. An attacker has no rights, or is a container with NET_ADMIN in its
own namespace; `hostile` is what they run.
"""
