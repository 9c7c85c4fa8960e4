"""Pure decisions and data: no I/O, no clock, no logging."""
