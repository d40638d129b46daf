"""Every kind of picture, by the name that `benchmarks/landscape.py` has for it."""

from benchmarks.instruments.picture import Picture
from benchmarks.instruments.spectra import Density, Eigenvalues
from benchmarks.instruments.surfaces import Contour, Curvature, Line, Plane
from benchmarks.instruments.theorem_1 import Smoothing

PICTURES: dict[str, type[Picture]] = {
    "contour": Contour,
    "line": Line,
    "plane": Plane,
    "curvature": Curvature,
    "eigenvalues": Eigenvalues,
    "density": Density,
    "smoothing": Smoothing,
}
