"""Links: which are NICs, and the operations that park, attach and detach them or make them gateways."""
