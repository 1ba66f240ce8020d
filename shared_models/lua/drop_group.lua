-- Drop the set of one group, if something other than the protocol has changed it. It is read again from the table.
--
-- KEYS[1] members   KEYS[2] intake   KEYS[3] state   KEYS[4] broken
-- ARGV[1] group   ARGV[2] token
-- Returns 1, or 0 if the group is as large as its size (nothing is changed then).
--
-- Atomic because otherwise the drop could lose a record that comes in between, together with the size that it moved. `broken`
-- names the group from now on, so that nobody takes it for an empty one. `swept` moves, because a run may have relied on its
-- members.
local size = redis.call('ZSCORE', KEYS[1], ARGV[1])
local set = set_of(KEYS[1], generation_of(KEYS[2]), ARGV[1])
if not size then return 0 end
local kind = redis.call('TYPE', set)['ok']
if (kind == 'set' or kind == 'none') and redis.call('SCARD', set) == tonumber(size) then return 0 end
local entries = redis.call('HMGET', KEYS[2], 'size')[1]
local swept = redis.call('HMGET', KEYS[3], 'swept')[1]
redis.call('HSET', KEYS[4], ARGV[1], ARGV[2])
redis.call('UNLINK', set)
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', names_of(KEYS[1]), ARGV[1])
if is_size(entries) then redis.call('HINCRBY', KEYS[2], 'size', -1) end
-- Nobody knows whether the set or its size was wrong. So the script adds up the members of all groups again.
local elements, sizes = 0, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 2, #sizes, 2 do elements = elements + math.max(tonumber(sizes[i]), 0) end
redis.call('HSET', KEYS[2], 'elements', string.format('%d', elements))
redis.call('HSET', KEYS[3], 'swept', string.format('%d', (is_size(swept) and tonumber(swept) or 0) + 1))
return 1
