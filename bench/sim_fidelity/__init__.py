"""How far is the simulator from real servers, policy by policy?"""
