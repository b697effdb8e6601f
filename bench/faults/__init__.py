"""What becomes of turns when workers or the router fail under them?"""
