"""Modules of "Reuse and Diffuse: Iterative Denoising for Text-to-Video Generation" (VidRD), arXiv 2309.03549."""
