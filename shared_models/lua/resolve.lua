-- Note that departures are resolved up to an xact, or that a reconcile has to resolve them.
--
-- KEYS[1] state   KEYS[2] departing
-- ARGV[1] left_through, and ARGV[2] build, that the batch started from   ARGV[3] token of the batch; "" if it marked nothing
-- ARGV[4] new left_through; "" for a reconcile   ARGV[5] history of Redis that the batch started from
-- Returns 1, or 0 if the counter is no longer as the batch found it (nothing is changed then).
--
-- Atomic because another keeper may have begun a batch of its own, with marks of its own, or the counter may have been built
-- again. After a failover, members that the batch has removed may be back.
local have = redis.call('HMGET', KEYS[1], 'left_through', 'build', 'leaving')
if have[1] ~= ARGV[1] or have[2] ~= ARGV[2] or (ARGV[3] ~= '' and have[3] ~= ARGV[3]) then return 0 end
if history() ~= ARGV[5] then return 0 end
if ARGV[3] ~= '' then
  redis.call('HDEL', KEYS[1], 'leaving')
  redis.call('UNLINK', KEYS[2])
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'left_through', ARGV[4])
else
  redis.call('HDEL', KEYS[1], 'left_through')
end
return 1
