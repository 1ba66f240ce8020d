-- Complete a counter: the fill has read the whole table.
--
-- KEYS[1] members   KEYS[2] intake   KEYS[3] state   KEYS[4] fill
-- ARGV[1] token of the fill   ARGV[2] position that it has reached; "" if the table had no rows
-- Returns 1, or 0 if this fill is no longer in progress, or its members are lost (the counter stays as it was).
--
-- Atomic because the cursor, the fill's end and the size must change together. The verification of an earlier build
-- says nothing about this one, so it is removed. So is left_through: members that were in the set before the fill may have
-- lost their rows meanwhile, and the first reconcile sets it again. The fill has read the table of its first snapshot.
local have = redis.call('HMGET', KEYS[4], 'token', 'position', 'gap', 'horizon', 'complete_through', 'source', 'changed_at')
if have[1] ~= ARGV[1] or (have[2] or '') ~= ARGV[2] then return 0 end
local size, token = unpack(redis.call('HMGET', KEYS[2], 'size', 'fill'))
if token ~= ARGV[1] or (size and not is_size(size))
    or count_of(KEYS[1]) - tonumber(size or '0') ~= tonumber(have[3]) then
  redis.call('DEL', KEYS[4])
  return 0
end
redis.call('HSET', KEYS[3], 'cursor', have[4], 'complete_through', have[5], 'source', have[6], 'build', ARGV[1])
if have[7] then redis.call('HSET', KEYS[3], 'settled', have[7]) end
redis.call('HDEL', KEYS[3], 'verified_at', 'missing', 'extra', 'repaired', 'refused', 'left_through', 'leaving')
-- Set the size even if it is 0: if there is a cursor, a missing size means that the intake was lost.
redis.call('HSET', KEYS[2], 'size', size or '0', 'build', ARGV[1])
redis.call('HDEL', KEYS[2], 'fill')
redis.call('DEL', KEYS[4])
return 1
