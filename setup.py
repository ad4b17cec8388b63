"""medspark: medical images as Delta tables, and on to trained networks."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "medspark" / "__init__.py").read_text(), re.MULTILINE)

# Ranges are what the code needs; conf/constraints.txt pins the one set that was tried.
ENGINE = [
    "pyspark>=4.0,<4.1",  # 4.1 wants pyarrow >= 15
    "delta-spark>=4.0,<4.1",
    "deltalake>=1.6,<2",
    "duckdb>=2.0,<3",
    "pyarrow>=14,<15",  # 15 removes the data set API that Petastorm reads by
    "numpy>=1.26,<2",
    "pandas>=2.2,<3",
    "pydicom>=3.0.2,<4",
    "highdicom>=0.28,<0.29",
    "python-gdcm>=3.2",
    "imagecodecs>=2026.1",
    "pyjpegls>=1.4",
    "pylibjpeg-openjpeg>=2.3",
    "nibabel>=5.2",
    "openslide-python>=1.4",
    "openslide-bin>=4.0",
    "simplejpeg>=1.8",
    "tifffile>=2025.1",
    "blosc2>=4.14,<5",
    "zstandard>=0.23",
    "google-crc32c>=1.6",
    "cryptography>=44",
    "pillow>=11",
    "shapely>=2.1",
    "scikit-image>=0.25",
    "scipy>=1.13",
    "defusedxml>=0.7",
    "requests>=2.32,<3",
    "pycocotools>=2.0.8",
    "matplotlib>=3.9",
    "rich>=13",
]
TRAIN = ["petastorm==0.13.1", "horovod==0.28.1", "mlflow>=3.17,<4", "scikit-learn>=1.5"]
EXTRAS = {
    "train": ["tensorflow-cpu==2.15.1", *TRAIN],
    "train-gpu": ["tensorflow[and-cuda]==2.15.1", *TRAIN],
    "robust": ["adversarial-robustness-toolbox>=1.20,<2", "scikit-learn>=1.5"],
    "dev": [
        "pytest>=8",
        "hypothesis>=6.100",
        "ruff>=0.8",
        "mypy>=1.13",
        "import-linter>=2.1",
        "codespell>=2.3",
        "nbclient>=0.10",
        "ipykernel>=7",
        "SimpleITK>=2.4",
        "pyvips>=3",
        "pyvips-binary>=8.16",
        "pynetdicom>=3.0,<4",
        "dicomweb-client>=0.60",
        "cryptography>=42",
    ],
}

setup(
    name="medspark",
    version=VERSION.group(1) if VERSION else "1.0.0",
    description=__doc__,
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["medspark", "medspark.*"]),
    include_package_data=True,
    # Plain C without Python's headers, called through ctypes; numpy does the same where it cannot be compiled. -fwrapv, which Python's own flags
    # hold, would keep its loops from being vectorised.
    ext_modules=[
        Extension("medspark.pixels.kernels", ["medspark/pixels/kernels.c"], extra_compile_args=["-O3", "-fno-wrapv"], optional=True)
    ],
    install_requires=ENGINE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["medspark=medspark.__main__:main"]},
    zip_safe=False,
)
