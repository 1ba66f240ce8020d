-- Add members to a counter, clear them of suspicion, and raise the watermark: the one way in for a member.
--
-- KEYS[1] members   KEYS[2] suspects   KEYS[3] state   KEYS[4] fill
-- ARGV[1] xact that a sweep has to see first: the one that stored the rows, or the highest that a catch-up pass is about
--         to claim; decimal text, "" for none
-- ARGV[2] source of that xact, "system identifier/timeline"; "" with an empty xact
-- ARGV[3…] members, a chunk at most
-- Returns how many of them were not in the set before.
--
-- Atomic because a sweep between "add" and "off the suspects" would take out a member that has just been
-- acknowledged, and a fence that reads the watermark between "add" and "raise" would not wait for its row.
local members, suspects, state = KEYS[1], KEYS[2], KEYS[3]
local xact, source = ARGV[1], ARGV[2]

-- An empty set has no key. Where a counter that is complete gets a new one, it was empty, or somebody has deleted it:
-- the keeper settles which, by what the cursor claimed at this moment.
local fresh = redis.call('EXISTS', members) == 0
local added = redis.call('SADD', members, unpack(ARGV, 3))
if fresh then
  -- What a fill has added, if there is one, is not there: it has to begin anew.
  redis.call('DEL', KEYS[4])
  local cursor = redis.call('HMGET', state, 'cursor')[1]
  if cursor then redis.call('HSET', state, 'doubt', cursor) end
end
if redis.call('EXISTS', suspects) == 1 then
  redis.call('HDEL', suspects, unpack(ARGV, 3))
end

if xact ~= '' then
  -- 64-bit numbers as text: Lua's own numbers are exact to 2^53 only.
  local function below(a, b) return #a < #b or (#a == #b and a < b) end
  local function split(s) return string.match(s, '^(.*)/(%d+)$') end
  local have = redis.call('HMGET', state, 'watermark', 'watermark_source')
  local replace = not have[1] or not have[2]
  if not replace and have[2] == source then
    replace = below(have[1], xact)
  elseif not replace then
    -- Another history. A later timeline replaces the mark: its rows begin below the old one's. An earlier
    -- timeline is a straggler on a primary that has been replaced: its rows are lost, its xacts mean nothing.
    local old_system, old_timeline = split(have[2])
    local system, timeline = split(source)
    replace = old_system ~= system or below(old_timeline, timeline)
  end
  if replace then
    redis.call('HSET', state, 'watermark', xact, 'watermark_source', source)
  end
end
return added
