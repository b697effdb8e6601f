"""Does one tenant's burst raise another tenant's latency? Live and simulated."""
