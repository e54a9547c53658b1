"""What scripts/dev.py and the tests share: the environment, a real ComfyUI server, a client. Standard library only."""
