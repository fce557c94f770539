-- Statements by version: the file's ``user_version`` says how many of these it has seen.
-- Append only.

-- Version 1
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    claim TEXT NOT NULL UNIQUE,
    outbox TEXT NOT NULL,
    request TEXT NOT NULL,
    received_at REAL NOT NULL,
    budget_usd REAL NOT NULL,
    retry_of TEXT,
    problems TEXT,                      -- of a refused file, as JSON
    first_task INTEGER NOT NULL,        -- the ids of a batch's tasks are consecutive
    tasks INTEGER NOT NULL,
    unfinished INTEGER NOT NULL,
    completed INTEGER NOT NULL DEFAULT 0,
    timeout INTEGER NOT NULL DEFAULT 0,
    error INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    finished_at REAL,
    published_at REAL,
    prune_from REAL,                    -- published_at, as long as there is something to prune
    pruned INTEGER NOT NULL DEFAULT 0   -- tasks whose bodies are gone
);
CREATE INDEX batches_open ON batches(id) WHERE published_at IS NULL;
CREATE INDEX batches_to_prune ON batches(prune_from) WHERE prune_from IS NOT NULL;

-- What changes with every event is kept apart from what is large (specs) and from what is
-- indexed (status, published): an UPDATE rewrites the row, and the index of each column it names.
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,             -- also the order in which they were queued
    batch INTEGER NOT NULL REFERENCES batches,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    dir TEXT NOT NULL,
    priority INTEGER NOT NULL,
    after TEXT NOT NULL,                -- names, separated by blanks
    status TEXT NOT NULL DEFAULT 'queued',
    reason TEXT,
    message TEXT NOT NULL DEFAULT '',
    since REAL NOT NULL,                -- when it came into this status
    attempt INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    worker TEXT NOT NULL DEFAULT '',
    finished_at REAL,
    published INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0,     -- of the next event
    barren INTEGER NOT NULL DEFAULT 0,  -- dispatches since the last event that shows progress
    rounds INTEGER NOT NULL DEFAULT 0,
    round_open INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_input_tokens INTEGER NOT NULL DEFAULT 0,
    cache_write_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    reasoning_tokens INTEGER NOT NULL DEFAULT 0,
    estimated INTEGER NOT NULL DEFAULT 0,
    cost_usd REAL DEFAULT 0,            -- NULL: a price is missing
    unsettled_calls INTEGER NOT NULL DEFAULT 0,
    unsettled_usd REAL NOT NULL DEFAULT 0,
    call_at REAL,                       -- of the request whose outcome is not recorded
    call_purpose TEXT,
    reserved_usd REAL,                  -- by that request
    step TEXT NOT NULL DEFAULT '',      -- the kind of the last event
    started_at REAL,
    last_at REAL,
    UNIQUE (batch, name)
);
CREATE INDEX tasks_open ON tasks(batch, status) WHERE published = 0;

CREATE TABLE specs (task INTEGER PRIMARY KEY REFERENCES tasks, body BLOB NOT NULL);

-- Rows are appended at the end and found by the index: many tasks that grow at once
-- then dirty few pages a commit.
CREATE TABLE events (
    task INTEGER NOT NULL REFERENCES tasks,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX events_of_task ON events(task, seq);

CREATE TABLE spend (
    batch INTEGER NOT NULL REFERENCES batches,
    day INTEGER NOT NULL,               -- since 1970-01-01, UTC
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    purpose TEXT NOT NULL,
    calls INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    estimated_calls INTEGER NOT NULL,
    unpriced_calls INTEGER NOT NULL,
    input_usd REAL NOT NULL,
    output_usd REAL NOT NULL,
    unsettled_calls INTEGER NOT NULL,
    unsettled_usd REAL NOT NULL,
    PRIMARY KEY (batch, day, provider, model, purpose)
) WITHOUT ROWID;
CREATE INDEX spend_by_day ON spend(day);

-- Version 2
CREATE TABLE parked (
    scope TEXT NOT NULL,
    name TEXT NOT NULL,
    cause TEXT NOT NULL,
    message TEXT NOT NULL,
    since REAL NOT NULL,
    PRIMARY KEY (scope, name, cause)
) WITHOUT ROWID;

-- Version 3
-- Kept apart from the specs: they go when the task ends.
CREATE TABLE secrets (task INTEGER PRIMARY KEY REFERENCES tasks, body BLOB NOT NULL);

-- Version 4
-- What tasks are distinguished by outlives their texts, and so does the money by tag: a row of
-- the ledger for each set of tags, so that a task with several is booked once.
-- ``migrations.tags`` fills it in.
ALTER TABLE tasks ADD COLUMN tags TEXT NOT NULL DEFAULT '';        -- JSON, sorted; empty: none
ALTER TABLE tasks ADD COLUMN evaluation TEXT NOT NULL DEFAULT '';  -- empty: nobody knows any more
ALTER TABLE tasks ADD COLUMN prompt_chars INTEGER;                 -- likewise, NULL

CREATE TABLE spend_by_tags (
    batch INTEGER NOT NULL REFERENCES batches,
    day INTEGER NOT NULL,               -- since 1970-01-01, UTC
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    purpose TEXT NOT NULL,
    tags TEXT NOT NULL,
    calls INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    cached_input_tokens INTEGER NOT NULL,
    cache_write_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL,
    estimated_calls INTEGER NOT NULL,
    unpriced_calls INTEGER NOT NULL,
    input_usd REAL NOT NULL,
    output_usd REAL NOT NULL,
    unsettled_calls INTEGER NOT NULL,
    unsettled_usd REAL NOT NULL,
    PRIMARY KEY (batch, day, provider, model, purpose, tags)
) WITHOUT ROWID;
INSERT INTO spend_by_tags SELECT
    batch, day, provider, model, purpose, '', calls, input_tokens, cached_input_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, estimated_calls, unpriced_calls,
    input_usd, output_usd, unsettled_calls, unsettled_usd
FROM spend;
DROP TABLE spend;
ALTER TABLE spend_by_tags RENAME TO spend;
CREATE INDEX spend_by_day ON spend(day);

-- Version 5
-- What models do without that refused it.
CREATE TABLE refused (
    model TEXT NOT NULL,                -- provider/model
    lesson TEXT NOT NULL,
    setting TEXT NOT NULL,              -- a hash of how the model was called
    at REAL NOT NULL,
    PRIMARY KEY (model, lesson)
) WITHOUT ROWID;

-- Version 6
-- What the provider's cache did. Of what is there already, a part from the cache shows that the
-- provider says so; what it saved is in no sum of ours.
ALTER TABLE tasks ADD COLUMN cache_write_long_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN cache_reported_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN cache_saved_usd REAL NOT NULL DEFAULT 0;
ALTER TABLE spend ADD COLUMN cache_write_long_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spend ADD COLUMN cache_reported_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spend ADD COLUMN cache_saved_usd REAL NOT NULL DEFAULT 0;
UPDATE tasks SET cache_reported_tokens = input_tokens WHERE cached_input_tokens > 0;
UPDATE spend SET cache_reported_tokens = input_tokens WHERE cached_input_tokens > 0;

-- Version 7
-- On which day people were last warned of which model that ends.
CREATE TABLE warned (
    model TEXT PRIMARY KEY,             -- provider/model
    day TEXT NOT NULL                   -- as in 2026-12-11, UTC
) WITHOUT ROWID;

-- Version 8
-- How many of a batch's tasks work at a time, 0:
-- as many as there are slots; and which batches come before it.
ALTER TABLE batches ADD COLUMN parallel INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN after_batches TEXT NOT NULL DEFAULT '';  -- names

-- Version 9
-- What a task needs of its machine, as in "1 big-disk": GPUs, and a label.
ALTER TABLE tasks ADD COLUMN needs TEXT NOT NULL DEFAULT '';

-- Version 10
-- Which file of a `run` it is: a hash of its path and bytes; on which machine a task is to work,
-- empty: on any; and what waits for receivers of notifications, and in which message it was
-- tried.
ALTER TABLE tasks ADD COLUMN machine TEXT NOT NULL DEFAULT '';
ALTER TABLE batches ADD COLUMN run TEXT NOT NULL DEFAULT '';
CREATE TABLE notices (
    receiver TEXT NOT NULL,
    id TEXT NOT NULL,                   -- the event's, an ULID
    event TEXT NOT NULL,                -- JSON
    message TEXT NOT NULL,              -- '': in none yet
    PRIMARY KEY (receiver, id)
) WITHOUT ROWID;
