"""The way from a dropped file to queued tasks: claims are taken up, parsed, named and stored."""
