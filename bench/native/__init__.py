"""C programs that stand at both ends of a router under measurement, and how they are built."""
