-- Add members to a counter, remove their marks, and raise the watermark. Only this script and fill.lua add members.
--
-- KEYS[1] members   KEYS[2] suspects   KEYS[3] departing   KEYS[4] intake   KEYS[5] state
-- ARGV[1] xact that a sweep has to see first: the one that stored the rows, or the highest that a catch-up pass is about
--         to claim; decimal text, "" for none
-- ARGV[2] source of the xacts, "system identifier/database/timeline"; "" if there are none
-- ARGV[3] the rows may have been deleted since by a transaction with this xact or a later one: the xact that stored the
--         rows, or the horizon of the snapshot that showed them; "" for none
-- ARGV[4…] elements, a chunk at most, as the storage takes them
-- Returns how many of them were not there before. If they come too late, because catch-up has passed that xact, nothing is
-- added: they were counted, or have left again. Then it returns 0 if all of them are there, and -1 if not. If there is no room
-- for so many groups, nothing is added, and it returns -2.
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
  return holds(members, intake, 4) and 0 or -1
end
unmark(members, suspects, 4)
unmark(members, departing, 4)
local moved, added = put(members, intake, 4)
if not moved then return -2 end
-- A size that is not a number stays as it is: the counter is not live then, and the keeper builds it.
if moved > 0 and (not size or is_size(size)) then
  redis.call('HINCRBY', intake, 'size', moved)
end

if xact ~= '' then
  raise_watermark(intake, xact, source, not build)
end
return added
