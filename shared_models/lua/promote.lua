-- Make a counter live: the fill has read the whole table.
--
-- KEYS[1] state   KEYS[2] fill   KEYS[3] members
-- ARGV[1] token of the fill   ARGV[2] position that it has reached; "" where the table had no rows
-- Returns 1, or 0 where this fill is no longer in progress, or what it has added is lost (the counter is as it was then).
--
-- Atomic because the cursor and the fill's end are one fact. What an earlier build of this counter was verified to
-- be says nothing about this one, and goes.
local have = redis.call('HMGET', KEYS[2], 'token', 'position', 'horizon', 'complete_through', 'source')
if have[1] ~= ARGV[1] or (have[2] or '') ~= ARGV[2] then return 0 end
if ARGV[2] ~= '' and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('DEL', KEYS[2])
  return 0
end
redis.call('HSET', KEYS[1], 'cursor', have[3], 'complete_through', have[4], 'source', have[5], 'build', ARGV[1])
redis.call('HDEL', KEYS[1], 'verified_at', 'missing', 'extra')
redis.call('DEL', KEYS[2])
return 1
