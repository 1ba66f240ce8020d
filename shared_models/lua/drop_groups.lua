-- Drop the sets of those of these groups that something other than the protocol has changed. They are read again from the table.
--
-- KEYS[1] members   KEYS[2] intake   KEYS[3] state   KEYS[4] broken
-- ARGV[1] token   ARGV[2…] groups, a piece at most
-- Returns the groups that it has dropped: those that are not as large as their size.
--
-- Atomic because otherwise the drop could lose a record that comes in between, together with the size that it moved. `broken`
-- names each group from now on, so that nobody takes it for an empty one. `swept` moves, because a run may have relied on its
-- members.
local entries = redis.call('HMGET', KEYS[2], 'size')[1]
local swept = redis.call('HMGET', KEYS[3], 'swept')[1]
local generation, dropped = generation_of(KEYS[2]), {}
local names = names_of(KEYS[1])
for i = 2, #ARGV do
  local group = ARGV[i]
  local size, set = redis.call('ZSCORE', KEYS[1], group), set_of(KEYS[1], generation, group)
  local kind = redis.call('TYPE', set)['ok']
  local is_a_set = kind == 'set' or kind == 'none'
  if size and not (is_a_set and redis.call('SCARD', set) == tonumber(size)) then
    redis.call('HSET', KEYS[4], group, ARGV[1])
    redis.call('UNLINK', set)
    redis.call('ZREM', KEYS[1], group)
    redis.call('ZREM', names, group)
    dropped[#dropped + 1] = group
  end
end
if #dropped == 0 then return dropped end
if is_size(entries) then redis.call('HINCRBY', KEYS[2], 'size', -#dropped) end
-- Nobody knows whether a set or its size was wrong. So the script adds up the members of all groups again. That takes longer than
-- the rest (0.1 s for 100,000 groups), so it is done once for a piece.
local elements, sizes = 0, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 2, #sizes, 2 do elements = elements + math.max(tonumber(sizes[i]), 0) end
redis.call('HSET', KEYS[2], 'elements', string.format('%d', elements))
redis.call('HSET', KEYS[3], 'swept', string.format('%d', (is_size(swept) and tonumber(swept) or 0) + #dropped))
return dropped
