"""Modules of "DreamVideo: High-Fidelity Image-to-Video Generation with Image Retention and Text Guidance", arXiv
2312.03018.

Stated: the branch is a copy of the down and middle blocks with a conv_in of its own (conv_d), a stride-8 encoder of the
image's pixels (conv_s) whose output is added to that of conv_d for every frame, and zero convolutions; Eq. 5; the null
image is white; what is trained. Reconstructed: the layers of conv_s and the number of the zero convolutions, which the
parameter count tells (680.72 M; the paper prints 680M); the range of the pixels; that temporal layers in the branch are
frozen copies, which that count leaves room for; both scales of Eq. 5; the image-first chain.
"""
