"""Videos of any length, clip by clip onto the disk. Knows no model: what samples and what decodes is handed in."""
