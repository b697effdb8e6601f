"""Does an agent conversation, served end to end on real SGLang, move its KV once?"""
