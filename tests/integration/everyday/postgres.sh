# A cluster of one's own, a parallel query, clients at once.
set -e
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
$bin/initdb -D /tmp/pg -U me --no-sync > /tmp/made
$bin/pg_ctl -w -D /tmp/pg -o "-k /tmp -c listen_addresses=127.0.0.1" -l /tmp/pg.log start > /tmp/started
$bin/psql -q -h 127.0.0.1 -U me postgres -c 'CREATE TABLE x AS SELECT generate_series(1, 100000) AS a' \
  -c 'SET max_parallel_workers_per_gather = 2; SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SELECT count(*) FROM x'
$bin/pgbench -q -h /tmp -U me -i postgres 2> /tmp/filled
$bin/pgbench -h /tmp -U me -c 6 -t 50 postgres | grep 300/300
$bin/pg_ctl -w -m immediate -D /tmp/pg stop
