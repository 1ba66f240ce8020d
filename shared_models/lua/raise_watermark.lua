-- For the scripts that raise a watermark: put in front of them.
--
-- Raise it to `xact` of `source`, if that is later. If there is none, it is set only if `first`: a counter that was built has
-- one, and if it is missing, what was acknowledged before is forgotten with it. Then it stays missing, and keeps sweeps from
-- going on, until the keeper has set it again.
local function raise_watermark(intake, xact, source, first)
  local function split(s) return string.match(s, '^(%d+/%d+)/(%d+)$') end
  local water, water_source = unpack(redis.call('HMGET', intake, 'watermark', 'watermark_source'))
  local known = water and water_source and #water <= 19 and string.match(water, '^%d+$') and split(water_source)
  local replace = not known and first
  if known and water_source == source then
    replace = below(water, xact)
  elseif known then
    -- Another history. A later timeline replaces the mark: its rows begin below the old one's. An earlier
    -- timeline is a straggler on a primary that has been replaced: its rows are lost, its xacts mean nothing.
    local old_database, old_timeline = split(water_source)
    local database, timeline = split(source)
    replace = old_database ~= database or below(old_timeline, timeline)
  end
  if replace then
    redis.call('HSET', intake, 'watermark', xact, 'watermark_source', source)
  end
end
