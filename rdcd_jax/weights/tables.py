"""Which torch layer each layer of a trunk here is. A new network is one more table.

A table maps the path of a layer here (`backbone.layer1.0.conv1`) to the layer's name in torch. The
names within a layer (`kernel` and `weight`, `mean` and `running_mean`) and the layouts are the
same for all: `convert` knows them.
"""

from collections.abc import Sequence

from rdcd_jax.models import efficientnet, fastvit, mobilenet, resnet, vit


def resnet50() -> dict[str, str]:
    """ResNet-50 under torchvision's names, as in SSCD's `.torchvision.pt`."""
    return _resnet(resnet.BLOCKS)


def resnext101_32x4d() -> dict[str, str]:
    """ResNeXt-101 under the names of torchvision and timm."""
    return _resnet(resnet.BLOCKS_101)


def classy_resnet50() -> dict[str, str]:
    """Layers of SSCD's `.classy.pt` (Classy Vision) under torchvision's names."""
    return _classy(resnet.BLOCKS)


def classy_resnext101_32x4d() -> dict[str, str]:
    """Layers of SSCD-large's `.classy.pt` (Classy Vision) under torchvision's names."""
    return _classy(resnet.BLOCKS_101)


def vit_b() -> dict[str, str]:
    """ViT-B under DINO's and timm's names, which are the names here."""
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names = ["patch_embed.proj", "norm"]
    names += [f"blocks.{i}.{layer}" for i in range(vit.DEPTH) for layer in block]
    # The class token and the position embeddings lie in the trunk itself.
    return {name: name for name in ("backbone", *(f"backbone.{name}" for name in names))}


def efficientnet_b0() -> dict[str, str]:
    """EfficientNet-B0 under torchvision's names."""
    names = {"stem.conv": "features.0.0", "stem.norm": "features.0.1"}
    for s, (expansion, *_, count) in enumerate(efficientnet.STAGES):
        # torchvision numbers what a block has, so a block without expansion starts with its
        # depthwise.
        parts = ["expand", "depthwise", "squeeze", "project"][expansion == 1 :]
        for b in range(count):
            for i, part in enumerate(parts):
                here, torch = f"stages.{s}.{b}.{part}", f"features.{s + 1}.{b}.block.{i}"
                inner = {"reduce": "fc1", "expand": "fc2"}
                if part != "squeeze":
                    inner = {"conv": "0", "norm": "1"}
                names |= {f"{here}.{ours}": f"{torch}.{theirs}" for ours, theirs in inner.items()}
    last = len(efficientnet.STAGES) + 1
    names |= {"last.conv": f"features.{last}.0", "last.norm": f"features.{last}.1"}
    names["head"] = "classifier.1"
    return {f"backbone.{here}": f"backbone.{torch}" for here, torch in names.items()}


def lite0_efficientnet_b0() -> dict[str, str]:
    """Layers of EfficientNet-Lite0 (as `efficientnet_lite_pytorch` names them) under torchvision's names for B0.

    Lite0 is B0 without squeeze-excite: those layers are missing.
    """
    names = {"_conv_stem": "features.0.0", "_bn0": "features.0.1"}
    blocks = [
        (s, b, expansion)
        for s, (expansion, *_, count) in enumerate(efficientnet.STAGES, start=1)
        for b in range(count)
    ]
    for number, (s, b, expansion) in enumerate(blocks):
        parts = {"expand": "_bn0", "depthwise": "_bn1", "squeeze": None, "project": "_bn2"}
        for i, (part, norm) in enumerate(list(parts.items())[expansion == 1 :]):
            if norm is not None:
                torchvision = f"features.{s}.{b}.block.{i}"
                names[f"_blocks.{number}._{part}_conv"] = f"{torchvision}.0"
                names[f"_blocks.{number}.{norm}"] = f"{torchvision}.1"
    last = len(efficientnet.STAGES) + 1
    names |= {"_conv_head": f"features.{last}.0", "_bn1": f"features.{last}.1"}
    return {f"backbone.{lite}": f"backbone.{torchvision}" for lite, torchvision in names.items()}


def mobilenet_v3_large() -> dict[str, str]:
    """MobileNetV3-Large under torchvision's names."""
    names = {"stem.conv": "features.0.0", "stem.norm": "features.0.1"}
    channels = mobilenet.STEM_CHANNELS
    for b, (_, wide, cout, squeezed, _, _) in enumerate(mobilenet.BLOCKS):
        parts = {
            "expand": wide != channels,
            "depthwise": True,
            "squeeze": squeezed,
            "project": True,
        }
        for i, part in enumerate(part for part, there in parts.items() if there):
            inner = {"reduce": "fc1", "expand": "fc2"}
            if part != "squeeze":
                inner = {"conv": "0", "norm": "1"}
            here, torch = f"blocks.{b}.{part}", f"features.{b + 1}.block.{i}"
            names |= {f"{here}.{ours}": f"{torch}.{theirs}" for ours, theirs in inner.items()}
        channels = cout
    last = len(mobilenet.BLOCKS) + 1
    names |= {"last.conv": f"features.{last}.0", "last.norm": f"features.{last}.1"}
    names |= {"hidden": "classifier.0", "head": "classifier.3"}
    return {f"backbone.{here}": f"backbone.{torch}" for here, torch in names.items()}


def fastvit_t12() -> dict[str, str]:
    """FastViT-T12 under timm's names; RDCD has its projector within a Sequential."""
    names = {"head": "head.fc"}

    def add_conv_norm(here: str, timm: str) -> None:
        names.update({f"{here}.conv": f"{timm}.conv", f"{here}.norm": f"{timm}.bn"})

    def add_branches(here: str, timm: str, *, small: bool, identity: bool) -> None:
        add_conv_norm(f"{here}.convs.0", f"{timm}.conv_kxk.0")
        if small:
            add_conv_norm(f"{here}.convs.1", f"{timm}.conv_scale")
        if identity:
            names[f"{here}.identity"] = f"{timm}.identity"

    for i in range(3):
        add_branches(f"stem.{i}.branches", f"stem.{i}", small=i < 2, identity=i == 2)
    for s, (_, count) in enumerate(fastvit.STAGES):
        if s > 0:
            here, timm = f"downsamples.{s - 1}", f"stages.{s}.downsample.proj"
            add_conv_norm(f"{here}.wide.convs.0", f"{timm}.0.large_conv")
            add_conv_norm(f"{here}.wide.convs.1", f"{timm}.0.small_conv")
            add_branches(f"{here}.mix.branches", f"{timm}.1", small=False, identity=True)
        for b in range(count):
            here, timm = f"stages.{s}.{b}", f"stages.{s}.blocks.{b}"
            mixer = f"{timm}.token_mixer"
            add_branches(f"{here}.mixer", f"{mixer}.mixer", small=True, identity=True)
            add_conv_norm(f"{here}.conv", f"{timm}.mlp.conv")
            names |= {
                f"{here}.mixer.norm": f"{mixer}.norm.identity",
                f"{here}.mixer.scale": f"{mixer}.layer_scale",
                f"{here}.expand": f"{timm}.mlp.fc1",
                f"{here}.project": f"{timm}.mlp.fc2",
                f"{here}.scale": f"{timm}.layer_scale",
            }
    add_branches("last.branches", "final_conv", small=True, identity=False)
    names |= {
        "last.squeeze.reduce": "final_conv.se.fc1",
        "last.squeeze.expand": "final_conv.se.fc2",
    }
    names = {f"backbone.{here}": f"backbone.{timm}" for here, timm in names.items()}
    return names | {"projector": "projector.0"}


LAYERS = {
    "efficientnet_b0": efficientnet_b0,
    "fastvit_t12": fastvit_t12,
    "mobilenet_v3_large": mobilenet_v3_large,
    "resnet50": resnet50,
    "resnext101_32x4d": resnext101_32x4d,
    "vit_b8": vit_b,
    "vit_b16": vit_b,
}


# The last linear layer of each, whose width is the feature's; the ViTs have none.
HEADS = {
    "efficientnet_b0": "backbone.classifier.1",
    "fastvit_t12": "backbone.head.fc",
    "mobilenet_v3_large": "backbone.classifier.3",
    "resnet50": "backbone.fc",
    "resnext101_32x4d": "backbone.fc",
}


def _resnet(blocks: Sequence[int]) -> dict[str, str]:
    return {
        f"backbone.{here}": f"backbone.{torchvision}"
        for here, torchvision, _ in _resnet_layers(blocks)
    }


def _classy(blocks: Sequence[int]) -> dict[str, str]:
    layers = _resnet_layers(blocks)[:-1]
    names = {f"backbone.{classy}": f"backbone.{torchvision}" for _, torchvision, classy in layers}
    return names | {"embeddings.1": "backbone.fc"}


def _resnet_layers(blocks: Sequence[int]) -> list[tuple[str, str, str]]:
    """Each layer here, in torchvision and in Classy Vision; the head is last."""
    rows = [
        ("conv1", "conv1", "initial_block._module.0"),
        ("bn1", "bn1", "initial_block._module.1"),
    ]
    inner = {
        "conv1": ("conv1", "convolutional_block.0"),
        "bn1": ("bn1", "convolutional_block.1"),
        "conv2": ("conv2", "convolutional_block.3"),
        "bn2": ("bn2", "convolutional_block.4"),
        "conv3": ("conv3", "convolutional_block.6"),
        "bn3": ("bn3", "bn"),
        "downsample_conv": ("downsample.0", "downsample.0"),
        "downsample_bn": ("downsample.1", "downsample.1"),
    }
    for s, count in enumerate(blocks):
        for b in range(count):
            for here, (torchvision, classy) in inner.items():
                if b > 0 and here.startswith("downsample"):
                    continue
                block = f"layer{s + 1}.{b}"
                rows.append(
                    (
                        f"{block}.{here}",
                        f"{block}.{torchvision}",
                        f"blocks.{s}.block{s}-{b}.{classy}",
                    )
                )
    return [*rows, ("fc", "fc", "")]
