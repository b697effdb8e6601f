"""Does the router lose a turn, a token, memory or a socket over hours of traffic and faults?"""
