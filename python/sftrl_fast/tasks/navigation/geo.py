"""Places on the globe: latitude and longitude in degrees, distances in metres."""

from __future__ import annotations

import math

LatLon = tuple[float, float]

EARTH_RADIUS = 6_371_008.8
"""Mean radius; within 0.6 % of the ellipsoid everywhere, which is 12 cm on 20 m."""
METRES_A_DEGREE = math.radians(1) * EARTH_RADIUS


def metres(a: LatLon, b: LatLon) -> float:
    """Distance over the ground (haversine formula)."""
    lat_a, lat_b = math.radians(a[0]), math.radians(b[0])
    east = math.radians(b[1] - a[1])
    half = math.sin((lat_b - lat_a) / 2) ** 2 + math.cos(lat_a) * math.cos(lat_b) * math.sin(east / 2) ** 2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(half)))


def bearing(a: LatLon, b: LatLon) -> float:
    """Heading from ``a`` to ``b`` at ``a``, degrees in [0, 360)."""
    lat_a, lat_b, east = math.radians(a[0]), math.radians(b[0]), math.radians(b[1] - a[1])
    x = math.sin(east) * math.cos(lat_b)
    y = math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(east)
    return math.degrees(math.atan2(x, y)) % 360


def moved(origin: LatLon, east: float, north: float) -> LatLon:
    """The place ``east`` and ``north`` metres from ``origin``; for some kilometres, away from the poles.

    Rounded to 1e-7 degrees (a centimetre), so that files hold short numbers.
    """
    latitude = origin[0] + north / METRES_A_DEGREE
    longitude = origin[1] + east / (METRES_A_DEGREE * math.cos(math.radians(origin[0])))
    return round(latitude, 7), round(longitude, 7)


def between(a: LatLon, b: LatLon, share: float) -> LatLon:
    """The place ``share`` of the way from ``a`` to ``b``, for ways short enough to be straight."""
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share
