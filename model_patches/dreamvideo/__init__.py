"""Modules of "DreamVideo: High-Fidelity Image-to-Video Generation with Image Retention and Text Guidance", arXiv
2312.03018.

Stated: the branch is a copy of the down and middle blocks with its own conv_in (conv_d), a stride-8 encoder of the
image's pixels (conv_s) whose output is added to that of conv_d for every frame, and zero convolutions; Eq. 5; the null
image is white; which parts are trained. Reconstructed: the layers of conv_s and the number of zero convolutions, from
the parameter count (680.72 M; the paper prints 680M); the range of the pixels; that the temporal layers in the branch
are frozen copies, which is consistent with that count; both scales of Eq. 5; the image-first chain.
"""
