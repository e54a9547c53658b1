"""Videos of any length on the disk: made clip by clip, read frame by frame. What samples and decodes is handed in."""
