"""From a dropped file to queued tasks: claims taken up,
parsed, named, stored; and what lies there of others.
"""
