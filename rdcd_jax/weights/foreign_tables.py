"""Names of the same network elsewhere, to those in `tables`."""

from rdcd_jax.models import efficientnet, mobilenet, vit


def timm_efficientnet_b0() -> dict[str, str]:
    """timm's `efficientnet_b0` under torchvision's names."""
    names = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    for s, (expansion, *_, count) in enumerate(efficientnet.STAGES):
        for b in range(count):
            names |= _timm_block(
                f"blocks.{s}.{b}",
                f"features.{s + 1}.{b}.block",
                expands=expansion != 1,
                squeezes=True,
            )
    last = len(efficientnet.STAGES) + 1
    names |= {"conv_head": f"features.{last}.0", "bn2": f"features.{last}.1"}
    return _in_backbone(names | {"classifier": "classifier.1"})


def timm_mobilenet_v3_large() -> dict[str, str]:
    """timm's `mobilenetv3_large_100` under torchvision's names."""
    names = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    channels, stage, block = mobilenet.STEM_CHANNELS, 0, -1
    for b, (_, wide, cout, squeezed, _, stride) in enumerate(mobilenet.BLOCKS):
        # timm counts the blocks of each stage, which ends where size or width change.
        starts = b > 0 and (stride > 1 or cout != channels)
        stage, block = (stage + 1, 0) if starts else (stage, block + 1)
        names |= _timm_block(
            f"blocks.{stage}.{block}",
            f"features.{b + 1}.block",
            expands=wide != channels,
            squeezes=bool(squeezed),
        )
        channels = cout
    last = len(mobilenet.BLOCKS) + 1
    here = f"blocks.{stage + 1}.0"
    names |= {f"{here}.conv": f"features.{last}.0", f"{here}.bn1": f"features.{last}.1"}
    return _in_backbone(names | {"conv_head": "classifier.0", "classifier": "classifier.3"})


def _timm_block(timm: str, torchvision: str, *, expands: bool, squeezes: bool) -> dict[str, str]:
    convs = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
    if not expands:
        convs = [("conv_dw", "bn1"), ("conv_pw", "bn2")]
    # Squeeze-excite, None, comes before the last convolution.
    parts = [*convs[:-1], *[None] * squeezes, convs[-1]]
    names = {}
    for i, part in enumerate(parts):
        here = f"{torchvision}.{i}"
        if part is None:
            names |= {
                f"{timm}.se.conv_reduce": f"{here}.fc1",
                f"{timm}.se.conv_expand": f"{here}.fc2",
            }
        else:
            names |= {f"{timm}.{part[0]}": f"{here}.0", f"{timm}.{part[1]}": f"{here}.1"}
    return names


def torchvision_vit_b16() -> dict[str, str]:
    """torchvision's `vit_b_16` under timm's names; whole names where no layer holds the array alone."""
    names = {
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "conv_proj": "patch_embed.proj",
        "encoder.ln": "norm",
    }
    for i in range(vit.DEPTH):
        theirs, block = f"encoder.layers.encoder_layer_{i}", f"blocks.{i}"
        names |= {
            f"{theirs}.ln_1": f"{block}.norm1",
            f"{theirs}.self_attention.in_proj_weight": f"{block}.attn.qkv.weight",
            f"{theirs}.self_attention.in_proj_bias": f"{block}.attn.qkv.bias",
            f"{theirs}.self_attention.out_proj": f"{block}.attn.proj",
            f"{theirs}.ln_2": f"{block}.norm2",
        }
        # The first names are those of the published files, the second the module's of today.
        for fc, others in {"fc1": ("linear_1", "0"), "fc2": ("linear_2", "3")}.items():
            names |= {f"{theirs}.mlp.{other}": f"{block}.mlp.{fc}" for other in others}
    return _in_backbone(names)


def _in_backbone(names: dict[str, str]) -> dict[str, str]:
    return {f"backbone.{theirs}": f"backbone.{ours}" for theirs, ours in names.items()}
