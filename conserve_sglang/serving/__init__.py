"""How our own processes listen and end: ports, and small HTTP servers beside their loops."""
