"""What do the policies give on the paper's set-up, on Claude Code sessions and on bursts?"""
