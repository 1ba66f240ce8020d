-- The storage of a counter whose elements are members: a SET.
-- For the scripts that need to know what holds the elements: put in front of them. Each storage has the same functions. How the
-- elements of ARGV[first…] are handed over: see `arguments` in shared_models/protocol/storages.py.
--
-- How many arguments stand for one element where elements are taken out; whether a fill keeps what it finds.
local WIDTH, KEEPS_GAP = 1, true

-- How many entries there are: what `size` has to be.
local function count_of(members) return redis.call('SCARD', members) end

-- Whether all elements of ARGV[first…] are there.
local function holds(members, intake, first)
  for _, present in ipairs(redis.call('SMISMEMBER', members, unpack(ARGV, first))) do
    if present == 0 then return false end
  end
  return true
end

-- What a mark on this element is called.
local function mark_of(element) return element end

-- Take the marks off the elements of ARGV[first…], which are about to be put in: each of them has a row.
local function unmark(members, marks, first)
  if redis.call('EXISTS', marks) == 1 then
    redis.call('HDEL', marks, unpack(ARGV, first))
  end
end

-- Put the elements of ARGV[first…] in. By how much `size` moves, and how many were not there.
-- nil: there is no room for them (nothing is changed then).
local function put(members, intake, first)
  local added = redis.call('SADD', members, unpack(ARGV, first))
  return added, added
end

-- Take one element out. By how much `size` moves, and what was taken out.
local function take(members, intake, element) return redis.call('SREM', members, element), element end
