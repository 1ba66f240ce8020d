-- Add members to a counter, clear them of suspicion, and raise the watermark: the one way in for a member.
--
-- KEYS[1] members   KEYS[2] suspects   KEYS[3] intake
-- ARGV[1] xact that a sweep has to see first: the one that stored the rows, or the highest that a catch-up pass is about
--         to claim; decimal text, "" for none
-- ARGV[2] source of that xact, "system identifier/timeline"; "" with an empty xact
-- ARGV[3…] members, a chunk at most
-- Returns how many of them were not in the set before.
--
-- Atomic because a sweep between "add" and "off the suspects" would take out a member that has just been
-- acknowledged, a fence that reads the watermark between "add" and "raise" would not wait for its row, and a reader
-- between "add" and "size" would take the set for damaged.
--
-- Redis does not roll a script back. So everything that can fail comes before the first member is added: the intake is
-- read, and a mark that is lost is always safe.
local members, suspects, intake = KEYS[1], KEYS[2], KEYS[3]
local xact, source = ARGV[1], ARGV[2]
local size, build = unpack(redis.call('HMGET', intake, 'size', 'build'))

if redis.call('EXISTS', suspects) == 1 then
  redis.call('HDEL', suspects, unpack(ARGV, 3))
end
local added = redis.call('SADD', members, unpack(ARGV, 3))
-- A size that is no number stays as it is: the counter is not live then, and the keeper builds it.
if added > 0 and (not size or is_size(size)) then
  redis.call('HINCRBY', intake, 'size', added)
end

if xact ~= '' then
  raise_watermark(intake, xact, source, not build)
end
return added
