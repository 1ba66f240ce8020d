-- Note that a group that was dropped has been read again.
--
-- KEYS[1] broken   KEYS[2] state
-- ARGV[1] group   ARGV[2] token of the drop   ARGV[3] build, ARGV[4] changed_at, and ARGV[5] history of Redis, that the reading
-- began with
-- Returns 1, or 0 if the counter is no longer as it was then (nothing is changed then).
--
-- Atomic because the group may have been dropped once more, or the counter built again. After a failover Redis may lack
-- members that were added to the group.
local build, changed_at, cursor = unpack(redis.call('HMGET', KEYS[2], 'build', 'changed_at', 'cursor'))
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if not cursor or build ~= ARGV[3] or (changed_at or '') ~= ARGV[4] then return 0 end
if history() ~= ARGV[5] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
