"""The sample's ATTRIBUTION.md: who made its images, under which licence, and what was changed."""

from collections import defaultdict

HEAD = """# Attribution of the sample's images

Every image here was scaled down and saved anew as JPEG; transparent parts became white. The
images in `queries/` were also edited, as `edits.csv` lists: colours, quality, geometry, text,
emoji, another image of the sample (`second_picture`). So all of them are changed versions of the
originals, and none of the authors endorses them. `sources.tsv` names for each image the Debian
package and version, the file in it, its authors and its licence, as the package's own copyright
file gives them for that very file. A changed version of a ShareAlike image is under the same
licence as the original. The program's own licence does not cover the images.

The emoji are Twemoji, by Twitter, Inc. and other contributors, CC-BY-4.0, as the AugLy package
carries them; scaled and placed on images.
"""
MIT = """## Notice of the images under the Expat (MIT) licence

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT
OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def attribution(rows: list[dict[str, str]]) -> str:
    """Returns the text of ATTRIBUTION.md.

    Args:
        rows: the rows of `sources.tsv`.
    """
    names: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    licences = set()
    for row in rows:
        package = f"{row['package']} {row['version']}"
        names[package][row["licence"], row["author"]].append(row["name"])
        licences.update(row["licence"].split(" and "))
    parts = [HEAD, "## Licences\n"]
    parts += [f"* {licence}: {_meaning(licence)}" for licence in sorted(licences)]
    parts.append("\n## Authors, by Debian package")
    for package, groups in sorted(names.items()):
        parts.append(f"\n### {package}\n")
        parts += [
            f"* {author or 'no author named'} ({licence}): {', '.join(images)}"
            for (licence, author), images in sorted(groups.items())
        ]
    return "\n".join([*parts, "", MIT])


def _meaning(licence: str) -> str:
    """The licence's address, or what the copyright file says in place of one."""
    if licence.startswith("CC0"):
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    if licence.startswith("CC-"):
        terms, _, version = licence.removeprefix("CC-").partition("-SA-")
        terms, version = ("by-sa", version) if version else ("by", terms.removeprefix("BY-"))
        version, _, country = version.rstrip("+").partition("-")
        version = version if "." in version else f"{version}.0"
        ending = f"{country.lower()}/" if country else ""
        later = ", or any later version" if licence.endswith("+") else ""
        return f"https://creativecommons.org/licenses/{terms}/{version}/{ending}{later}"
    if licence.startswith("NASA"):
        return "images of NASA, which are not under copyright"
    if licence in ("Expat", "MIT"):
        return "the notice at the end of this file"
    return "given to the public domain by the author, or no longer under copyright"
