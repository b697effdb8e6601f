"""What does one NVIDIA GPU take, and what do whole conversations cost on it in time and energy?"""
