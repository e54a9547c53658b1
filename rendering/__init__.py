"""Videos of any length on disk, rendered clip by clip and read frame by frame. Callers pass sampler and decoder."""
