"""ART-V: Auto-Regressive Text-to-Video Generation with Diffusion Models, arXiv 2311.18834.

Wenming Weng, Ruoyu Feng, Yanhui Wang, Qi Dai, Chunyu Wang, Dacheng Yin, Zhiyuan Zhao, Kai Qiu, Jianmin Bao, Yuhui Yuan,
Chong Luo, Yueyi Zhang, Zhiwei Xiong. An image model generates one frame at a time, conditioned on the two previous
frames and on an anchor frame.

Stated in the paper: Eq. 3 to 8, the sizes of Table 2, the T2I-Adapter for the two previous frames, cross-attention for
the anchor, the ranges of the noise augmentation (0 to 550 in training, 200 in sampling), guidance 0.25, 0.25, 6.5.

Reconstructed, because neither the text nor any code states it:

- the form of the anchor blocks and of their tokens: from the parameter counts of Table 2 (`anchor`);
- how the level of the augmentation enters the time embedding (`noise`);
- the static part of Eq. 6 as a noise estimate at every level (`masked`); the paper's own wording is an option;
- the mask network's sigmoid, and that its adapter and anchor blocks equal the dynamic network's in form (`mask_unet`);
- what replaces a dropped condition: zeros without noise, and a mask of 0 (`conditions`).
"""
