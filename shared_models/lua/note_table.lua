-- Note which table a snapshot shows. If it is another one than before, complete_through stands still until a
-- reconcile or a fill of it has ended; unless nothing has come but what catch-up reads.
--
-- KEYS[1] intake   KEYS[2] state
-- ARGV[1] fingerprint of the table   ARGV[2] now in microseconds
-- ARGV[3] the highest xact that the snapshot may show   ARGV[4] its source   ARGV[5] the table's parts
-- ARGV[6] the change (changed_at) since which only retired parts have left and empty ones have come; "" if that is not so
-- Returns the change that is noted now (changed_at), and the one that is settled.
--
-- Atomic because each change needs a name of its own: a run that began before the change must not settle it. A table
-- that changes and changes back has changed twice. The watermark is raised to what the snapshot may show: a sweep on a
-- replica that does not show it yet has to wait. A change settles itself only if the parts were compared with those of the
-- change that is noted, and if that one is settled.
local known, changed_at, settled = unpack(redis.call('HMGET', KEYS[2], 'fingerprint', 'changed_at', 'settled'))
if known == ARGV[1] and changed_at then return { changed_at, settled or '' } end
local build = redis.call('HMGET', KEYS[1], 'build')[1]
local last = changed_at and #changed_at <= 16 and string.match(changed_at, '^%d+$') and tonumber(changed_at) or 0
local as_it_was = ARGV[6] ~= '' and changed_at == ARGV[6] and settled == ARGV[6]
changed_at = string.format('%d', math.max(tonumber(ARGV[2]), last + 1))
redis.call('HSET', KEYS[2], 'fingerprint', ARGV[1], 'changed_at', changed_at, 'parts', ARGV[5])
if as_it_was then
  settled = changed_at
  redis.call('HSET', KEYS[2], 'settled', settled)
end
raise_watermark(KEYS[1], ARGV[3], ARGV[4], not build)
return { changed_at, settled or '' }
