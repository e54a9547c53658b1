"""ART-V: Auto-Regressive Text-to-Video Generation with Diffusion Models, arXiv 2311.18834.

Wenming Weng, Ruoyu Feng, Yanhui Wang, Qi Dai, Chunyu Wang, Dacheng Yin, Zhiyuan Zhao, Kai Qiu, Jianmin Bao, Yuhui Yuan,
Chong Luo, Yueyi Zhang, Zhiwei Xiong. Frames are made one at a time by an image model that looks at the two frames
before and at an anchor.

Stated in the paper: Eq. 3 to 8, the sizes of Table 2, the T2I-Adapter for the two frames before, cross-attention for
the anchor, the ranges of the noise augmentation (0 to 550 in training, 200 afterwards), guidance 0.25, 0.25, 6.5.

Reconstructed, as neither the text nor any code says it:

- the form of the anchor blocks and of their tokens: from the parameter counts of Table 2 (`anchor`);
- how the level of the augmentation enters the time embedding (`noise`);
- a static part of Eq. 6 that is a noise estimate at every level (`masked`); the paper's own words are an option;
- the mask network's sigmoid, and that its adapter and anchor blocks have the form of the other network's (`mask_unet`);
- what stands in for a condition that is left out: zeros that are not noised, and a mask of 0 (`conditions`).
"""
