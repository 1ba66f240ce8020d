-- Remove the members that this sweep has still marked.
--
-- KEYS[1] members   KEYS[2] suspects, or departing   KEYS[3] intake   KEYS[4] state
-- ARGV[1] token of the sweep   ARGV[2] changed_at when its fence was read   ARGV[3…] elements without a row, a chunk at most;
-- last seen: after each the day that replaces its day, "" for none
-- Returns how many the keeper has to ask about again, and then the removed elements; or -1 if some are marked and the table has
-- changed since (nothing is changed then).
--
-- Atomic because a member that is recorded after the check of its mark must stay, and because the size changes with the
-- members. So does `swept`, which tells a run that another sweep has removed members that it relied on. If the
-- table has changed since, it may have a row of them: the sweep asked another table. Redis does not roll a script back.
-- So the script reads the hashes first, and nothing that can fail comes after the first SREM.
local size = redis.call('HMGET', KEYS[3], 'size')[1]
local swept, changed_at = unpack(redis.call('HMGET', KEYS[4], 'swept', 'changed_at'))
local gone, removed = { 0 }, 0
for i = 3, #ARGV, WIDTH do
  local mark = mark_of(ARGV[i])
  local holder = redis.call('HGET', KEYS[2], mark)
  if holder == ARGV[1] then
    if (changed_at or '') ~= ARGV[2] then return -1 end
    redis.call('HDEL', KEYS[2], mark)
    local moved, element = take(KEYS[1], KEYS[3], ARGV[i], ARGV[i + 1])
    removed = removed + moved
    gone[#gone + 1] = element
  elseif holder == 'again' then
    gone[1] = gone[1] + 1
  end
end
if removed > 0 and is_size(size) then
  redis.call('HINCRBY', KEYS[3], 'size', -removed)
end
if #gone > 1 then
  redis.call('HSET', KEYS[4], 'swept', string.format('%d', (is_size(swept) and tonumber(swept) or 0) + #gone - 1))
end
return gone
