# Writes its argument under the names of results and transcripts, and prints it.
for f in 001.json 001.jsonl results.jsonl summary.json; do printf '%s\n' "$1" > $f; done
cat summary.json
