"""Mutated ground truths, descriptor files and settings for `evaluate disc`."""

import io
import os
import pickle
import zipfile

import h5py
import numpy as np

from experiments.fuzz.damage import TEXTS, Case, Place, chosen, damaged
from experiments.fuzz.seeds import FEATURE, descriptor_arrays, ground_truth, ids


def csv_case(position: Place, random: np.random.Generator) -> Case:
    """A ground truth that is damaged or does not belong to the descriptors."""
    good = ground_truth()
    lines = good.splitlines()
    way = int(random.integers(9))
    at = int(random.integers(1, len(lines)))
    path = position.inside / "truth.csv"
    if way == 0:
        data, what = damaged(good.encode(), random)
    elif way == 1:
        odd = [*TEXTS, "Q" * 200_000, "Q77777", '"Q00000\nx"', '"', "Q00000;R00000", "Q00000"]
        lines[at] = chosen(random, ("{},R00000", "Q00000,{}", "{}")).format(chosen(random, odd))
        data, what = "\n".join(lines).encode("utf-8", "surrogatepass"), f"line {at + 1} is odd"
    elif way == 2:
        width = int(random.choice([1, 3, 50, 100_000]))
        lines[at] = ",".join(["Q00000"] * width)
        data, what = "\n".join(lines).encode(), f"line {at + 1} has {width} columns"
    elif way == 3:
        encoding = chosen(random, ("utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-7"))
        data, what = good.replace("Q00003", "Qü").encode(encoding), encoding
    elif way == 4:
        row = chosen(
            random, ("Q00000,R00000\n", "Q{},R00000\n", "\n", ",\n", "Q00000,\n", "\x00\n")
        )
        data = "".join(row.format(i) for i in range(100_000)).encode()
        what = f"100,000 lines of {row!r}"
    elif way == 5:
        end = chosen(random, ("\r", "\r\n", "\x00", "\u2028", "\x0b"))
        data, what = end.join(lines).encode(), f"lines end in {end!r}"
    elif way == 6:
        data, what = (
            chosen(random, [b"", b"\n", lines[0].encode(), b"\x00" * 1000, b"\xff" * 1000]),
            "empty",
        )
    elif way == 7:
        data, what = good.replace(",", chosen(random, ";\t |")).encode(), "another separator"
    else:
        kind, data = chosen(random, ("fifo", "folder", "device", "missing", "loop")), None
        what = kind
        _odd_file(path, kind)
    if data is not None:
        position.written("truth.csv", data)
    return _evaluation(position, what, path, {"ground-truth": path})


def descriptor_case(position: Place, random: np.random.Generator) -> Case:
    """A descriptor file, `.npz` or `.h5`, damaged or made to do harm."""
    prefix = chosen(random, "qrt")
    suffix = chosen(random, (".npz", ".npz", ".h5"))
    good = (position.seeds / f"{prefix}{suffix}").read_bytes()
    way = int(random.integers(10))
    path = position.inside / f"bad{suffix}"
    if way < 3:
        data, what = damaged(good, random)
        position.written(path.name, data)
    elif way < 7:
        what = _wrong_arrays(path, prefix, random)
    elif way == 7:
        what = chosen(random, ("fifo", "folder", "device", "loop"))
        position.inside.mkdir(exist_ok=True)
        _odd_file(path, what)
    elif suffix == ".npz":
        what = _npz_trick(path, position, prefix, random)
    else:
        what = _h5_trick(path, position, prefix, random)
    name = {"q": "queries", "r": "references", "t": "training"}[prefix]
    return _evaluation(position, f"{name} {suffix}: {what}", path, {name: path})


def settings_case(position: Place, random: np.random.Generator) -> Case:
    """Values of `evaluate disc`'s own options."""
    long = "9" * 5000
    values = {
        "codecs": [
            *TEXTS,
            "PCAW99,L2norm,Flat",
            f"PCAW{long},Flat",
            "PCA0,Flat",
            "Flat;" * 500,
            "IVF9",
        ],
        "score-norm": [
            *TEXTS,
            "1e3[0,1]",
            f"1[0,{long}]",
            f"{'9' * 400}[0]",
            "-0[0,0]",
            "1[2,1]",
            "1[30]",
        ],
        "k": ["0", "-1", "x", "1e3", str(2**63), str(10**30), long, "", "nan"],
        "backend": [*TEXTS, "jax_approx", "faiss", "scann_ah"],
    }
    name, options = chosen(random, values)
    value = chosen(random, options).replace("\x00", "")
    more = ["--global-candidates"] if random.random() < 0.3 else []
    case = _evaluation(position, f"--{name}={value[:40]}", position.inside, {name: value}, *more)
    what = {"codecs": "codec", "score-norm": "score norm", "k": "k", "backend": "backend"}[name]
    # Ranks and dimensions beyond the training set are reported with its numbers.
    return Case(case.argv, case.injected, (what, "search", "dimensions", "candidates", "training"))


def _evaluation(position, what, path, changed, *more) -> Case:
    truth = position.written("good.csv", ground_truth())
    options = {
        name: position.seeds / f"{name[0]}.npz" for name in ("queries", "references", "training")
    }
    options |= {"ground-truth": truth, "out": position.out, "backend": "numpy"}
    options |= {"codecs": "Flat;PCAW4,L2norm,Flat"} | changed
    argv = ["evaluate", "disc", *(f"--{name}={value}" for name, value in options.items())]
    return Case([*argv, *more], what, (str(path), str(truth)))


def _odd_file(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "device"):
        path.symlink_to(path.name if kind == "loop" else "/dev/zero")


def _wrong_arrays(path, prefix, random):
    arrays, n = descriptor_arrays(prefix), len(ids(prefix))
    rows, names = arrays["descriptors"], arrays["ids"]
    spoilt = rows.copy()
    spoilt[1, 2] = chosen(random, (np.nan, np.inf, -np.inf, 3e38, -0.0))
    structured = np.zeros(n, [("a", "f4"), ("b", "U3")])
    changes = {
        "spoilt rows": {"descriptors": spoilt},
        "huge doubles": {"descriptors": rows.astype(np.float64) * 1e300},
        "largest floats": {"descriptors": np.full_like(rows, 3e38)},
        "zeros": {"descriptors": np.zeros_like(rows)},
        "long doubles": {"descriptors": rows.astype(np.longdouble)},
        "big-endian": {"descriptors": rows.astype(">f4"), "ids": names.astype(">U9")},
        "integers": {"descriptors": (rows * 100).astype(chosen(random, ("u1", "i8", "u8")))},
        "complex": {"descriptors": rows.astype(complex)},
        "truths": {"descriptors": rows > 0},
        "one axis": {"descriptors": rows[0]},
        "three axes": {"descriptors": rows[None]},
        "no axis": {"descriptors": np.float32(1)},
        "no rows": {"descriptors": rows[:0], "ids": names[:0]},
        "no columns": {"descriptors": rows[:, :0]},
        "another width": {"descriptors": rows[:, :3]},
        "fewer ids": {"ids": names[:-1]},
        "the same ids": {"ids": np.repeat(names[:1], n)},
        "numbers for ids": {"ids": np.arange(n)},
        "NaN for ids": {"ids": np.full(n, np.nan)},
        "bytes for ids": {"ids": np.asarray([b"\xff\xfe" + bytes([65 + i]) for i in range(n)])},
        "ids of odd characters": {"ids": np.asarray([f"\ud800\n{i}\x1b[1m" for i in range(n)])},
        "dates for ids": {"ids": np.arange(n).astype("datetime64[D]")},
        "records for ids": {"ids": structured},
        "a matrix of ids": {"ids": names[None]},
        "another model": {"model": np.str_(chosen(random, TEXTS))},
        "an array for a model": {"model": rows},
        "nothing": dict.fromkeys(("ids", "descriptors")),
    }
    what, change = chosen(random, changes)
    arrays = {name: value for name, value in (arrays | change).items() if value is not None}
    if path.suffix == ".npz":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)
        return what
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for ours, theirs in (("descriptors", "vectors"), ("ids", "image_names")):
            value = arrays.get(ours)
            if value is not None:
                try:
                    file[theirs] = value.astype(object) if value.dtype.kind == "U" else value
                except (TypeError, ValueError):
                    file.create_group(theirs)
        file.attrs["model"] = chosen(random, ["made up", 7, np.zeros(3), np.bytes_(b"\xff")])
    return what


def _npz_trick(path, position, prefix, random):
    arrays = descriptor_arrays(prefix)
    stream = io.BytesIO()
    if random.random() < 0.4:
        # Only a reader that unpickles would run it.
        arrays["ids"] = np.asarray([_Evil(str(position.marker))] * len(arrays["ids"]), object)
        np.savez(stream, **arrays)
        position.written(path.name, stream.getvalue())
        return "objects that run code"
    heads = {
        "a terabyte": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 256)}",
        "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 16)}",
        "a number too long": "{'descr': '<f4', 'fortran_order': False, 'shape': (%s,)}"
        % ("9" * 5000),
        "code": f"__import__('os').system('touch {position.marker}')",
        "deep": "(" * 9000,
        "odd type": "{'descr': [('a', '<f4', (1000000,))], 'fortran_order': False, 'shape': (9,)}",
    }
    what, head = chosen(random, heads)
    head = head.encode()
    data = b"\x93NUMPY\x02\x00" + len(head).to_bytes(4, "little") + head + bytes(999)
    if random.random() < 0.3:
        what, rows = "a bomb of 4 GB", 2**26
        data = None
    np.savez(stream, ids=arrays["ids"], model=arrays["model"])
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("../../../MARKER", b"x")
        with archive.open("descriptors.npy", "w", force_zip64=True) as member:
            if data is not None:
                member.write(data)
            else:
                head = {"descr": "<f4", "fortran_order": False, "shape": (rows, FEATURE)}
                np.lib.format.write_array_header_2_0(member, head)
                for _ in range(64):
                    member.write(bytes(rows * FEATURE * 4 // 64))
    position.written(path.name, stream.getvalue())
    return f"header: {what}"


class _Evil:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (self._marker,)


def _h5_trick(path, position, prefix, random):
    arrays = descriptor_arrays(prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    tricks = (
        "unallocated",
        "packed",
        "groups",
        "external",
        "loop",
        "pickles",
        "ragged",
        "foreign",
        "raw",
    )
    trick = chosen(random, tricks)
    with h5py.File(path, "w") as file:
        if trick not in ("ragged", "pickles"):
            file["image_names"] = arrays["ids"].astype(object)
        if trick == "unallocated":
            file.create_dataset("vectors", (10**9, FEATURE), "f4")
        elif trick == "packed":
            file.create_dataset(
                "vectors", (2**26, FEATURE), "f4", chunks=(2**16, FEATURE), compression=1
            )
            file["vectors"][: 2**16] = 1
        elif trick == "groups":
            file.create_group("vectors")
        elif trick == "external":
            file["vectors"] = h5py.ExternalLink("../../../../etc/passwd", "/x")
        elif trick == "loop":
            file["vectors"] = h5py.SoftLink("/vectors")
        elif trick == "raw":
            file.create_dataset(
                "vectors", arrays["descriptors"].shape, "f4", external=[("/dev/zero", 0, 2**20)]
            )
        elif trick == "foreign":
            file["v\n1"] = 1
        else:
            file["vectors"] = arrays["descriptors"]
            if trick == "ragged":
                kind = h5py.vlen_dtype(np.int32)
                file.create_dataset("image_names", (len(arrays["ids"]),), kind)
            else:
                evil = pickle.dumps(_Evil(str(position.marker)))
                file["image_names"] = np.asarray([np.void(evil)] * len(arrays["ids"]))
    return trick
