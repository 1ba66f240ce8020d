-- Note what a reconcile found, on the counter that it looked at.
--
-- KEYS[1] state
-- ARGV[1] build of the counter when the run began   ARGV[2] now in microseconds   ARGV[3] missing   ARGV[4] extra
-- Returns 1, or 0 where the counter has been lost or built anew since (nothing is changed then).
--
-- Atomic because a counter that goes cold in between must not come back with the proof of its predecessor.
local have = redis.call('HMGET', KEYS[1], 'build', 'cursor')
if have[1] ~= ARGV[1] or not have[2] then return 0 end
redis.call('HSET', KEYS[1], 'verified_at', ARGV[2], 'missing', ARGV[3], 'extra', ARGV[4])
return 1
