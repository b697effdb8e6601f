"""The router in several processes: one brain, and fronts that serve clients on one port."""
