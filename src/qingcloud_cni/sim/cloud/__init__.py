"""The simulated cloud as a plain object: state, actions, jobs, faults."""
