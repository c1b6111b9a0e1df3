"""`rdcd-jax data ACTION`: prepares and inspects sets of images."""

import os

from rdcd_jax.cli.options import (
    SOURCE,
    add_beam_option,
    add_ids_option,
    add_strict_option,
    local_path,
    positive,
    report_unreadable,
    reported,
    require_all,
    verb,
)


def add_data(verbs) -> None:
    """Adds the verb with its actions to the parser's verbs."""
    parser = verb(
        verbs,
        "data",
        "Prepare and inspect sets of images.",
        "rdcd-jax data check FOLDER",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_pack(actions)
    _add_prepare(actions)
    _add_check(actions)
    _add_preview(actions)


def _add_workers(parser) -> None:
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        default=os.cpu_count() or 1,
        help="processes (all cores)",
    )


def _add_pack(actions) -> None:
    parser = verb(
        actions,
        "pack",
        "Pack images into shards of records, or go on with it where it was ended.",
        "rdcd-jax data pack FOLDER packed --short-side=320",
        _pack,
    )
    parser.add_argument("source", help=SOURCE)
    parser.add_argument("out", type=local_path, help="folder for the shards")
    parser.add_argument(
        "--short-side",
        type=positive,
        metavar="N",
        help="reduce larger images to this short side in pixels, and store JPEGs; files are stored unchanged without",
    )
    parser.add_argument(
        "--quality", type=positive, metavar="Q", help="of these JPEGs, 1 to 100 (95)"
    )
    add_strict_option(parser)
    split = parser.add_mutually_exclusive_group()
    split.add_argument("--shards", type=positive, metavar="N", help="how many to make")
    split.add_argument("--shard-size", type=positive, metavar="N", help="images in one (2048)")
    add_beam_option(parser)
    _add_workers(parser)
    add_ids_option(parser)


def _pack(options, rest) -> None:
    from rdcd_jax.images.given import images_of
    from rdcd_jax.images.pack import UNREADABLE, pack_images

    images = images_of(options.source, ids=options.ids)
    with reported() as report:
        packed = pack_images(
            images,
            options.out,
            short_side=options.short_side,
            quality=options.quality,
            shards=options.shards,
            shard_size=options.shard_size,
            workers=options.workers,
            beam_options=options.beam_options,
            on_progress=lambda done, total: report("Packing", done, total),
        )
    report_unreadable(len(packed.unreadable), options.out / UNREADABLE)
    print(f"{options.out} holds {packed.images} images; shards: {packed.shards}.")
    require_all(options, images, len(packed.unreadable))


def _add_prepare(actions) -> None:
    parser = verb(
        actions,
        "prepare",
        "Write a downloaded benchmark as a data set of tensorflow-datasets, its files unchanged.",
        "rdcd-jax data prepare disc2021 --manual-dir=DOWNLOADS --data-dir=DATASETS",
        _prepare,
    )
    parser.add_argument("name", help="disc2021, ndec or copydays")
    parser.add_argument(
        "--manual-dir",
        required=True,
        metavar="FOLDER",
        help="holds what was downloaded and unpacked; an empty one tells what belongs there",
    )
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="for the prepared set (TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )
    add_beam_option(parser)


def _prepare(options, rest) -> None:
    from rdcd_jax.benchmarks.builders import prepare

    with reported() as report:
        prepared = prepare(
            options.name,
            options.manual_dir,
            options.data_dir,
            beam_options=options.beam_options,
            on_progress=report,
        )
    what = ", ".join(f"{split} {count}" for split, count in prepared.images.items())
    how = "was there already" if prepared.was_there else "is prepared"
    print(f"{prepared.name} {how} in {prepared.folder}; images: {what}.")
    where = "" if options.data_dir is None else f", with TFDS_DATA_DIR={options.data_dir}"
    print(f"Give it as tfds:{prepared.name}/{next(iter(prepared.images))}{where}.")


def _add_check(actions) -> None:
    parser = verb(
        actions,
        "check",
        "Read every image and report sizes, duplicates, what is unreadable, and what other sets hold too.",
        "rdcd-jax data check TRAINING --against=QUERIES --against=REFERENCES --out=report.json",
        _check,
    )
    parser.add_argument("source", help=SOURCE)
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SOURCE",
        help="another set, such as the queries that a training set must not hold; may be repeated",
    )
    parser.add_argument("--out", type=local_path, metavar="JSON", help="file for all of it")
    add_strict_option(parser)
    _add_workers(parser)
    add_ids_option(parser)


def _check(options, rest) -> None:
    from rdcd_jax.core.files import require_writable, write_json
    from rdcd_jax.images.check_set import check_images, report_text
    from rdcd_jax.images.given import images_of
    from rdcd_jax.images.links import each_once

    if options.out is not None:
        require_writable(options.out)
    source, *against = (
        each_once(images_of(each, ids=options.ids)) for each in (options.source, *options.against)
    )
    with reported() as report:
        found = check_images(source, against=against, workers=options.workers, on_progress=report)
    print(report_text(found))
    if options.out is not None:
        write_json(options.out, found.as_json())
    require_all(options, source, len(found.unreadable))


def _add_preview(actions) -> None:
    parser = verb(
        actions,
        "preview",
        "Draw a sheet of images, views that a policy makes of them, and what was done to each.",
        "rdcd-jax data preview FOLDER --policy=ADVANCED --out=sheet.png",
        _preview,
    )
    parser.add_argument("source", help=SOURCE)
    parser.add_argument(
        "--policy",
        default="ADVANCED",
        help="its name, or steps such as 'hflip 0.5; resized_crop 1 scale=0.3,1 ratio=0.75,1.33' (ADVANCED)",
    )
    parser.add_argument("--out", required=True, type=local_path, help="a .png or .jpg file")
    parser.add_argument(
        "--image-size", type=positive, default=224, metavar="S", help="side of a view (224)"
    )
    parser.add_argument("--rows", type=positive, default=8, metavar="N", help="images (8)")
    parser.add_argument("--views", type=positive, default=5, metavar="N", help="of each (5)")
    parser.add_argument("--seed", type=int, default=0, help="decides the views (0)")
    add_ids_option(parser)


def _preview(options, rest) -> None:
    from rdcd_jax.augment.preview import write_contact_sheet
    from rdcd_jax.images.given import images_of

    write_contact_sheet(
        images_of(options.source, ids=options.ids),
        options.policy,
        options.image_size,
        options.out,
        rows=options.rows,
        views=options.views,
        seed=options.seed,
    )
    print(f"The sheet is {options.out}.")
