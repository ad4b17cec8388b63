"""Masks that thresholds make of real pictures which come without any: something to show labels with, and no diagnosis.

Every name says so: ``... by threshold``.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np

RETINA = "retina"
VESSEL, DISC, LUNG_FIELD = 11, 12, 13
"""Values of the masks; `CLASSES` names them."""
CLASSES = {VESSEL: "vessel by threshold", DISC: "disc by threshold", LUNG_FIELD: "lung by threshold"}
VESSEL_PX = 25  # wider than the vessels of this picture: what a closing of this size fills is a vessel
VESSEL_DEPTH = 11  # of 255: how much darker than its surroundings a vessel is in green
MIN_VESSEL_PX = 400  # smaller pieces are noise
DISC_SMOOTH_PX = 8.0
DISC_SHARE = 0.982  # quantile of the smoothed green in the field of view, vessels taken out: the disc is the brightest place
FIELD_EDGE_PX = 15  # the rim of the field of view is no vessel
SMOOTH_PX = 1.0  # of an X-ray: its noise
BRIDGE_PX = 5  # half the width of what may join a lung field to the air around the body, or to that in the stomach
MIN_FIELD = 0.03  # of the image: a lung field is larger


def retina(folder: Path) -> tuple[Path, Path]:
    """(``retina.jpg``, ``retina_mask.png``) in ``folder``: the fundus photograph that scikit-image ships (CC0), its vessels and disc."""
    from PIL import Image

    photo, mask = folder / f"{RETINA}.jpg", folder / f"{RETINA}_mask.png"
    if not (photo.exists() and mask.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        spec = find_spec("skimage")
        assert spec is not None
        assert spec.origin is not None
        shutil.copyfile(Path(spec.origin).parent / "data" / f"{RETINA}.jpg", photo)
        with Image.open(photo) as image:
            Image.fromarray(fundus_mask(np.asarray(image.convert("RGB")))).save(mask)
    return photo, mask


def fundus_mask(rgb: np.ndarray) -> np.ndarray:
    """(rows, cols) uint8 of 0, VESSEL and DISC for a fundus photograph (rows, cols, 3) uint8."""
    from scipy.ndimage import binary_erosion, binary_fill_holes, gaussian_filter, grey_closing, label
    from skimage.morphology import remove_small_objects

    green = gaussian_filter(rgb[..., 1].astype(np.float32), 1.5)
    field = binary_erosion(rgb[..., 0] > 60, iterations=FIELD_EDGE_PX)
    without = grey_closing(green, size=(VESSEL_PX, VESSEL_PX))
    vessel = remove_small_objects((without - green > VESSEL_DEPTH) & field, max_size=MIN_VESSEL_PX)
    bright = gaussian_filter(without, DISC_SMOOTH_PX)
    pieces, count = label((bright > np.quantile(bright[field], DISC_SHARE)) & field)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    disc = binary_fill_holes(pieces == 1 + int(sizes.argmax()))
    mask = np.zeros(green.shape, np.uint8)
    mask[vessel] = VESSEL
    mask[disc] = DISC  # whole, over the vessels that leave it
    return mask


def lung_fields(radiograph: Path, folder: Path) -> Path:
    """A mask for a chest X-ray (DICOM, MONOCHROME1), named after it, in ``folder``."""
    import pydicom
    from PIL import Image

    path = folder / f"{radiograph.stem}_mask.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(field_mask(pydicom.dcmread(radiograph).pixel_array)).save(path)
    return path


def field_mask(stored: np.ndarray) -> np.ndarray:
    """(rows, cols) uint8 of 0 and LUNG_FIELD: the dark fields (large values, MONOCHROME1) that do not reach the border."""
    from scipy.ndimage import binary_fill_holes, binary_opening, gaussian_filter, label
    from skimage.filters import threshold_multiotsu

    smooth = gaussian_filter(stored.astype(np.float32), SMOOTH_PX)
    _, lung, _ = threshold_multiotsu(smooth, classes=4)  # middle and bone, soft tissue, lung, air around the body
    pieces, count = label(binary_opening(smooth > lung, iterations=BRIDGE_PX))
    border = {*pieces[0], *pieces[-1], *pieces[:, 0], *pieces[:, -1]}
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    kept = [piece for piece in range(1, count + 1) if piece not in border and sizes[piece] >= MIN_FIELD * stored.size]
    return np.where(binary_fill_holes(np.isin(pieces, kept)), LUNG_FIELD, 0).astype(np.uint8)
