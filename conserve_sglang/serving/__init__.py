"""How our own processes listen: ports, and small HTTP servers beside their loops."""
