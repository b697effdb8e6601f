"""The agent: one small process per host that reads meters, and attributes and tells energy."""
