"""What is known of models beside their prices:
which there are, which end when, what they are mistaken for.

From a table of ours, and from the lists of the providers themselves, which ``query`` fetches: that
alone loads a client for HTTP.
"""

from batchd.catalog.listing import ListedModel, ModelListing, nearest
from batchd.catalog.shutdowns import SOON_DAYS, Shutdown, end, house, shutdown, today

__all__ = [
    "SOON_DAYS",
    "ListedModel",
    "ModelListing",
    "Shutdown",
    "end",
    "house",
    "nearest",
    "shutdown",
    "today",
]
