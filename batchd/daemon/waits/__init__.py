"""What waits, and how it goes on:
people's pauses, providers out of order, money, tiers, models that end.
"""
