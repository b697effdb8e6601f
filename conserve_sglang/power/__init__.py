"""Power as values: plans of caps, and the control law. Pure: no I/O, no clock, no log."""
