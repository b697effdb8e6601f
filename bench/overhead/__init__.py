"""Parts of the bench `router_overhead`: the routers it starts, checks and takes the cost of."""
