-- The storage of a counter whose elements are members: a SET.
-- `steps` puts one storage's file before each script that adds, removes or counts elements. Each storage has the same functions.
-- `arguments` in shared_models/protocol/storages.py says how ARGV[first…] holds elements.
--
-- How many arguments one element has when it is removed; whether a fill keeps members of unknown origin.
local WIDTH, KEEPS_GAP = 1, true

-- How many entries there are. `size` has to be the same number.
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

-- Remove the marks of the elements of ARGV[first…]. The script is about to add these elements, and each has a row.
local function unmark(members, marks, first)
  if redis.call('EXISTS', marks) == 1 then
    redis.call('HDEL', marks, unpack(ARGV, first))
  end
end

-- Add the elements of ARGV[first…]. Returns by how much `size` moves, and how many elements were not there before;
-- nil if there is no room for them (nothing is changed then).
local function put(members, intake, first)
  local added = redis.call('SADD', members, unpack(ARGV, first))
  return added, added
end

-- Remove one element. Returns by how much `size` moves, and the removed element.
local function take(members, intake, element) return redis.call('SREM', members, element), element end
