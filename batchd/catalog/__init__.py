"""What is known of models beside their prices: which there are, which end when, what they are mistaken for.

From a table of ours, and from the lists of the providers themselves, which ``asking`` fetches: that alone loads a
client for HTTP.
"""

from batchd.catalog.listing import Listed, Listing, nearest
from batchd.catalog.shutdowns import SOON_DAYS, Shutdown, end, house, shutdown, today

__all__ = [
    "SOON_DAYS",
    "Listed",
    "Listing",
    "Shutdown",
    "end",
    "house",
    "nearest",
    "shutdown",
    "today",
]
