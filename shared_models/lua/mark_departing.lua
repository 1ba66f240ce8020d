-- Mark members whose departures are being resolved.
--
-- KEYS[1] state   KEYS[2] departing
-- ARGV[1] token of the batch   ARGV[2…] members, a chunk at most
-- Returns 1, or 0 if another batch has begun (nothing is changed then).
--
-- Atomic because a keeper that was stopped for longer than its lease must not overwrite the marks of another keeper,
-- which would treat its members as recorded.
if redis.call('HGET', KEYS[1], 'leaving') ~= ARGV[1] then return 0 end
local marks = {}
for i = 2, #ARGV do
  marks[#marks + 1] = ARGV[i]
  marks[#marks + 1] = ARGV[1]
end
redis.call('HSET', KEYS[2], unpack(marks))
return 1
