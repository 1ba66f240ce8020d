-- Note a new fill of a counter; it replaces one that was in progress.
--
-- KEYS[1] members   KEYS[2] intake   KEYS[3] state   KEYS[4] fill
-- ARGV[1] token of the fill   ARGV[2] now in microseconds   ARGV[3] xact that the fill is about to claim   ARGV[4] its source
-- ARGV[5…] names and values of its other fields
-- Returns nothing.
--
-- Atomic because the set and its `size` must change together. Members that are in the set now, and not counted in
-- `size`, stay a gap: only a reconcile settles members of unknown origin, never a fill. An empty set has no gap. Storages
-- other than a set start empty if there is a gap, if their keys do not fit together, or if the counter was refused (too many
-- groups).
local size, build, water = unpack(redis.call('HMGET', KEYS[2], 'size', 'build', 'watermark'))
local cursor, counted_build, refused = unpack(redis.call('HMGET', KEYS[3], 'cursor', 'build', 'refused'))
local count = count_of(KEYS[1])
if size and not is_size(size) then
  redis.call('HDEL', KEYS[2], 'size')
  size = false
end
-- A complete counter keeps its answer while it is filled again (after a failover). A lost one must not become live
-- through the fields that are set here.
if not (size and build and build == counted_build) or (count == 0 and size ~= '0') then
  redis.call('HDEL', KEYS[3], 'cursor')
end
if count == 0 then
  size = '0'
  redis.call('HSET', KEYS[2], 'size', size)
end
local gap = count - tonumber(size or '0')
if not build and (gap ~= 0 or (count > 0 and not water)) then
  -- The set holds members that the intake does not know. The intake may have been deleted, with its watermark, even if the
  -- counter was never built: sweeps wait until the replica shows everything that was acknowledged before.
  redis.call('HSET', KEYS[3], 'watermark_reset_at', ARGV[2])
end
if not KEEPS_GAP and (count == 0 or gap ~= 0 or refused or not is_whole(KEYS[1])) then
  clear(KEYS[1], KEYS[2], ARGV[1])
  redis.call('HSET', KEYS[2], 'size', '0')
  redis.call('HDEL', KEYS[3], 'cursor')
  gap = 0
end
redis.call('HSET', KEYS[2], 'fill', ARGV[1])
redis.call('DEL', KEYS[4])
redis.call('HSET', KEYS[4], 'token', ARGV[1], 'gap', string.format('%d', gap), unpack(ARGV, 5))

-- A sweep has to see what the fill relies on, even if its replica is behind the fill's. A pass does the same.
raise_watermark(KEYS[2], ARGV[3], ARGV[4], not build)
