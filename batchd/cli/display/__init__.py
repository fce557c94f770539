"""What commands show: numbers, lines, progress and summaries for a terminal."""
