#!/bin/bash
# Prints its arguments in capital letters, one a line.
for word in $*; do
    echo "$word" | tr a-y A-Y
done
