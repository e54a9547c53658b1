"""The modules in a diffusers U-Net: the only importer of diffusers in model_patches."""
