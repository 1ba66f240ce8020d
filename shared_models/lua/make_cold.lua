-- Make a counter cold: members that its cursor claims are lost, or the cursor is impossible.
--
-- KEYS[1] state
-- ARGV[1] cursor, and ARGV[2] build, as the keeper has seen them
-- Returns 1, or 0 if the counter is no longer as it was seen (nothing is changed then).
--
-- Atomic because the counter may have been built again since the keeper looked.
local have = redis.call('HMGET', KEYS[1], 'cursor', 'build')
if have[1] ~= ARGV[1] or (have[2] or '') ~= ARGV[2] then return 0 end
return redis.call('HDEL', KEYS[1], 'cursor')
