"""Videos of any length on the disk: made clip by clip, read frame by frame. Knows no model: what samples is handed in."""
