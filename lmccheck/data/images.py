"""A folder of images per class, read by pillow (extra ``data``): classes in sorted order, files in sorted order.

Without a transform an image is what it is, in red, green and blue from 0 to 1: nothing is scaled, cut or normalised.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmccheck.data.collate import is_array
from lmccheck.data.described import DataSpec
from lmccheck.data.extras import extra
from lmccheck.data.folders import image_files
from lmccheck.data.imports import importable, label, load_object, say
from lmccheck.data.text import Read
from lmccheck.errors import SourceError, shown_path
from lmccheck.shown import some
from lmccheck.store.disk import read_bytes

MOST_BYTES = 2**30  # of one image
MEND = 'transform = "module:callable", which makes images of one size of them'


def read_images(spec: DataSpec, folder: Path) -> Read:
    """Return the images below a folder as (n, …) numbers, and their classes, (n,) int64. Raises SourceError."""
    classes, files = image_files(folder / spec.path)
    change = transform_of(spec, folder)
    images, held = [], []
    for path, _ in files:
        try:
            raw, one = read_bytes(path, "an image", MOST_BYTES)
        except ValueError as error:
            raise SourceError(str(error)) from None
        images.append(read_image(raw, shown_path(path), change))
        held.append(one)
    return Read(
        stacked(images, [shown_path(path) for path, _ in files], change.given),
        torch.tensor([place for _, place in files], dtype=torch.int64),
        "images",
        tuple(held),
        {"class": tuple(classes[place] for _, place in files)},
        tuple(shown_path(path) for path, _ in files),
    )


class Transform:
    """What makes numbers of an image: a user's function, or what its pixels are."""

    def __init__(self, given: Callable[[Any], Any] | None, name: str, folder: Path | None) -> None:
        self.given, self.name, self.folder = given, name, folder
        self._tried = False

    def __call__(self, image: Any, where: str) -> Tensor:
        """Return an image as numbers; the first one twice, since what is drawn anew each time is no data."""
        if self.given is None:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
            return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        found = self._called(image, where)
        if not self._tried:
            self._tried = True
            again = self._called(image, where)
            if found.shape != again.shape or not torch.equal(found, again):
                raise SourceError(
                    f"transform {self.name!r}: makes two things of one image, {where}; expected one; mend: the "
                    "transform of evaluation, without random crops or flips"
                )
        return found

    def _called(self, image: Any, where: str) -> Tensor:
        assert self.given is not None
        try:
            with importable(self.folder):
                found = self.given(image.copy())
        except (Exception, SystemExit) as error:
            raise SourceError(f"transform {self.name!r}: raised {say(error)} for {where}") from error
        if not is_array(found):
            raise SourceError(
                f"transform {self.name!r}: returned {type(found).__name__} for {where}, expected a tensor or an array; "
                "mend: end it with one that makes a tensor"
            )
        return found.detach() if isinstance(found, Tensor) else torch.from_numpy(np.ascontiguousarray(found))


def transform_of(spec: DataSpec, folder: Path) -> Transform:
    """Return what a spec says to make of images."""
    given = spec.transform
    made = load_object(given, folder, "transform") if isinstance(given, str) else given
    if made is not None and not callable(made):
        raise SourceError(f"transform {given!r}: got {type(made).__name__}, expected a function of a PIL image")
    return Transform(made, label(given) if given is not None else "", folder)


def read_image(raw: bytes, where: str, change: Transform) -> Tensor:
    """Return an image of its bytes as numbers. Raises SourceError, beginning with ``where``."""
    library = extra("PIL.Image", "data", where)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", library.DecompressionBombWarning)
            with library.open(io.BytesIO(raw)) as image:
                image.load()
                return change(image, where)
    except SourceError:
        raise
    except Exception as error:
        got = "cannot be identified" if "cannot identify" in str(error) else say(error)
        raise SourceError(
            f"{where}: {got}, expected an image that pillow can read; mend: take it out, or save it again"
        ) from None


def stacked(images: Sequence[Tensor], places: Sequence[str], given: Any) -> Tensor:
    """Return images as one tensor. Raises SourceError for the first that is not of the first one's size."""
    for image, place in zip(images, places, strict=True):
        if image.shape != images[0].shape:
            sizes = some({f"{tuple(each.shape)}": None for each in images}, 3)
            mend = "let the transform resize them" if given is not None else MEND
            raise SourceError(
                f"{place}: has shape {tuple(image.shape)}, {os.path.basename(places[0])} {tuple(images[0].shape)}; "
                f"expected one, got {sizes}; mend: {mend}"
            )
    return torch.stack(list(images))
