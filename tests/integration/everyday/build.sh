# Twenty files, four at a time.
set -e
for n in $(seq 20); do echo "int f$n(int x) { return x + $n; }" > f$n.c; done
echo 'int main(void) { return 0; }' > main.c
printf 'a: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tgcc -flto=2 -o $@ $^\n%%.o: %%.c\n\tgcc -pipe -flto -O2 -c $<\n' > Makefile
make -j4 > /tmp/made 2>&1 || { cat /tmp/made; exit 1; }
./a
