"""The models in a diffusers U-Net. Only this package in model_patches imports diffusers."""
