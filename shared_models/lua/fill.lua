-- One chunk of a fill: add members and move the fill's position to the last of them.
--
-- KEYS[1] members   KEYS[2] suspects   KEYS[3] departing   KEYS[4] intake   KEYS[5] fill
-- ARGV[1] token of the fill   ARGV[2] position that the chunk was read from: "=" and a member, or "" at the start
-- ARGV[3] position after the chunk   ARGV[4] how many elements it has
-- ARGV[5…] the elements, as the storage takes them; none if all of the table's chunk belongs to other parts
-- Returns how many were not there before; -1 if this fill is no longer in progress, or what it has added is lost; -2 if there is
-- no room for so many groups (nothing is added then).
--
-- Atomic because the position says "all up to here are in the set". If Redis loses the members, or goes back to an older
-- save, the position has to go with them. So another keeper can continue from it.
local have = redis.call('HMGET', KEYS[5], 'token', 'position', 'gap')
if have[1] ~= ARGV[1] or (have[2] or '') ~= ARGV[2] then return -1 end
-- The position claims members. If something else has changed the set, or the intake, they may not be there.
local size, token = unpack(redis.call('HMGET', KEYS[4], 'size', 'fill'))
if token ~= ARGV[1] or (size and not is_size(size))
    or count_of(KEYS[1]) - tonumber(size or '0') ~= tonumber(have[3]) then
  redis.call('DEL', KEYS[5])
  return -1
end
local moved, added = 0, 0
if ARGV[4] ~= '0' then
  unmark(KEYS[1], KEYS[2], 5)
  unmark(KEYS[1], KEYS[3], 5)
  moved, added = put(KEYS[1], KEYS[4], 5)
  if not moved then return -2 end
  redis.call('HINCRBY', KEYS[4], 'size', moved)
end
redis.call('HSET', KEYS[5], 'position', ARGV[3])
redis.call('HINCRBY', KEYS[5], 'read', ARGV[4])
return added
