-- `steps` puts this before the scripts that raise a watermark.
--
-- Raise it to `xact` of `source`, if that is later. If there is none, set it only if `first`: a counter that was built has
-- one, and if it is missing, earlier acknowledgements are forgotten. Then it stays missing, and sweeps wait,
-- until the keeper has set it again.
local function raise_watermark(intake, xact, source, first)
  local function split(s) return string.match(s, '^(%d+/%d+)/(%d+)$') end
  local water, water_source = unpack(redis.call('HMGET', intake, 'watermark', 'watermark_source'))
  local known = water and water_source and #water <= 19 and string.match(water, '^[1-9]%d*$') and split(water_source)
  local replace = not known and first
  if known and water_source == source then
    replace = below(water, xact)
  elseif known then
    -- Another history. A later timeline replaces the watermark: its xacts may begin below the old one's. An earlier
    -- timeline is a straggler on a primary that was replaced: its rows are lost, and its xacts have no meaning.
    local old_database, old_timeline = split(water_source)
    local database, timeline = split(source)
    replace = old_database ~= database or below(old_timeline, timeline)
  end
  if replace then
    redis.call('HSET', intake, 'watermark', xact, 'watermark_source', source)
  end
end
