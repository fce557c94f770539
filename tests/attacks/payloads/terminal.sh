# Looks for a terminal; the last line is the number of the one that controls it.
for fd in 0 1 2; do test -t $fd && echo "terminal on $fd"; done
(exec 3<>/dev/tty) 2>/dev/null && echo "it has a terminal"
ls -l /proc/self/fd | grep -E 'pts|tty'
ps -o tty= -p $$ 2>/dev/null | grep -v '?'
cut -d' ' -f7 /proc/self/stat
