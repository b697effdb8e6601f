"""Does anything a client or a worker sends crash, hang or leak in the router?"""
