-- Add members to a counter, remove their marks, and raise the watermark. Only this script and fill.lua add members.
--
-- KEYS[1] members   KEYS[2] suspects   KEYS[3] departing   KEYS[4] intake   KEYS[5] state
-- ARGV[1] xact that a sweep has to see first: the one that stored the rows, or the highest that a catch-up pass is about
--         to claim; decimal text, "" for none
-- ARGV[2] source of the xacts, "system identifier/database/timeline"; "" if there are none
-- ARGV[3] the rows may have been deleted since by a transaction with this xact or a later one: the xact that stored the
--         rows, or the horizon of the snapshot that showed them; "" for none
-- ARGV[4…] members, a chunk at most
-- Returns how many of them were not in the set before; or -1 if they come too late: catch-up has passed that xact. They
-- were counted, or they have left again; nothing is added, and not all of them are in the set. (0 if all are.)
--
-- Atomic because a sweep between "add" and "remove the mark" would remove a member that was just
-- acknowledged, a fence that reads the watermark between "add" and "raise" would not wait for its row, and a reader
-- between "add" and "size" would see a damaged set. And if the cursor moved after the script had read it, "add" could
-- bring back a member whose departure is resolved.
--
-- Redis does not roll a script back. So everything that can fail comes before the first member is added: the script reads
-- the hashes first, and losing a mark is always safe.
local members, suspects, departing, intake = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local xact, source, known = ARGV[1], ARGV[2], ARGV[3]
local size, build = unpack(redis.call('HMGET', intake, 'size', 'build'))
local cursor, cursor_source = unpack(redis.call('HMGET', KEYS[5], 'cursor', 'source'))

if cursor and cursor_source == source and known ~= '' and below(known, cursor) then
  for _, present in ipairs(redis.call('SMISMEMBER', members, unpack(ARGV, 4))) do
    if present == 0 then return -1 end
  end
  return 0
end
if redis.call('EXISTS', suspects) == 1 then
  redis.call('HDEL', suspects, unpack(ARGV, 4))
end
if redis.call('EXISTS', departing) == 1 then
  redis.call('HDEL', departing, unpack(ARGV, 4))
end
local added = redis.call('SADD', members, unpack(ARGV, 4))
-- A size that is not a number stays as it is: the counter is not live then, and the keeper builds it.
if added > 0 and (not size or is_size(size)) then
  redis.call('HINCRBY', intake, 'size', added)
end

if xact ~= '' then
  raise_watermark(intake, xact, source, not build)
end
return added
