"""What ``batchd demo`` shows: recorded conversations, and the server that replays them."""
