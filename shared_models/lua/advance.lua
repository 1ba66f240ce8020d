-- Move a live counter's cursor to the horizon that a catch-up pass has reached.
--
-- KEYS[1] state
-- ARGV[1] cursor, and ARGV[5] build, that the pass started from   ARGV[2] source that the pass read
-- ARGV[3] new cursor   ARGV[4] new complete_through in microseconds; "" leaves it as it is
-- ARGV[6] changed_at, and ARGV[7] history of Redis, that the pass started from
-- Returns 1, or 0 if the counter is no longer as the pass found it (nothing is changed then).
--
-- Atomic because Redis may have been emptied, or another pass may have moved the cursor, since the pass began: a cursor
-- must not claim members that are not in the set. It compares the build, because a counter whose set was deleted may have
-- been built again since, up to the same cursor. It compares changed_at, because another process may have seen another
-- table since, and removed members that have a row in this one. It compares the history, because after a failover Redis may
-- lack members that the pass has added, or relied on.
local have = redis.call('HMGET', KEYS[1], 'cursor', 'source', 'build', 'changed_at')
if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or have[3] ~= ARGV[5] or (have[4] or '') ~= ARGV[6] then return 0 end
if history() ~= ARGV[7] then return 0 end
redis.call('HSET', KEYS[1], 'cursor', ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'complete_through', ARGV[4]) end
return 1
